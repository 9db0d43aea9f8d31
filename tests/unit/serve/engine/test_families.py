"""Every family in the shared batch: as its own loop would have it, whoever is beside it."""

from pathlib import Path

import pytest
import torch

from fit_models.bundle import Bundle, load_bundle
from fit_models.families import samplers_of
from fit_serve.engine.sequence import plan_sequence
from support.sequences import PIXELS_PER_TOKEN, request_of
from support.stepping import Visit, by_the_book, together
from support.toy_families import TOY_CONFIGS, make_family_bundle


@pytest.fixture(scope="module", params=sorted(TOY_CONFIGS))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_family_bundle(tmp_path_factory.mktemp("bundle"), request.param)))


@torch.inference_mode()
def test_a_mix_of_everything_is_what_each_would_have_been_alone(bundle: Bundle):
    samplers = samplers_of(bundle.model_config)
    grids = [(2, 3), (4, 4), (1, 5), (3, 2), (4, 4)]
    visits = [
        Visit(
            request_of(
                sequence_id=str(i),
                grid=grids[i % len(grids)],
                steps=3 + i % 3,
                scale=(1.0, 2.5)[i % 2],
                interval=(0.0, 1.0) if i % 3 else (0.2, 0.7),
                sampler=samplers[i % len(samplers)],
                seed=i,
                label=i % 3,
            ),
            begins=i % 2,
        )
        for i in range(2 * len(samplers) + 3)
    ]
    found = together(bundle, visits)
    for visit, latent in zip(visits, found, strict=True):
        expected = by_the_book(bundle, visit.request)
        torch.testing.assert_close(
            latent, expected, atol=2e-4 * float(expected.abs().max()), rtol=0
        )


def test_a_sampler_of_another_kind_is_refused_with_those_that_work(bundle: Bundle):
    config = bundle.model_config
    other = "ddpm" if config.prediction == "velocity" else "euler"
    with pytest.raises(
        ValueError, match=f"sampler '{other}' is not for .* known: {samplers_of(config)[0]}"
    ):
        plan_sequence(request_of(sampler=other), PIXELS_PER_TOKEN, None, config)


def test_the_file_says_which_family_it_is(tmp_path: Path):
    for name in TOY_CONFIGS:
        bundle = load_bundle(str(make_family_bundle(tmp_path / name, name)))
        assert type(bundle.network).__name__ in name.replace("SiT", "DiT")
