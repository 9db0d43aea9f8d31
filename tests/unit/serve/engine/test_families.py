"""Every family in the shared batch: as its own loop would have it, whoever is beside it."""

from typing import Any

import pytest
import torch

from fit_models.bundle import Bundle, load_bundle
from fit_models.families import FAMILIES, VELOCITY, family_of, prediction_of, samplers_of
from fit_serve.engine.sequence import plan_sequence
from support.sequences import PIXELS_PER_TOKEN, request_of
from support.stepping import Visit, by_the_book, together
from support.toy_families import (
    TEXT_FAMILIES,
    TOY_CONFIGS,
    make_family_bundle,
    subject_of,
    toy_grids,
)


@pytest.fixture(scope="module", params=sorted(TOY_CONFIGS))
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_family_bundle(tmp_path_factory.mktemp("bundle"), request.param)))


def prompts(bundle: Bundle, number: int) -> dict[str, Any]:
    """Some prompt for a network that reads them."""
    name = family_of(bundle.model_config).name
    return subject_of(name, number) if name in TEXT_FAMILIES else {}


@torch.inference_mode()
def test_a_mix_of_everything_is_what_each_would_have_been_alone(bundle: Bundle):
    samplers = samplers_of(bundle.model_config)
    grids = toy_grids(bundle.model_config)
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
                **prompts(bundle, i),
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
    other = "ddpm" if prediction_of(config) == VELOCITY else "euler"
    request = request_of(grid=toy_grids(config)[0], sampler=other)
    known = samplers_of(config)[0]
    with pytest.raises(ValueError, match=f"sampler '{other}' is not for .* known: {known}"):
        plan_sequence(request, PIXELS_PER_TOKEN, None, config)


def test_a_bundle_is_of_the_family_and_config_it_was_made_of(bundle: Bundle):
    assert bundle.model_config in TOY_CONFIGS.values()
    assert type(bundle.network) is family_of(bundle.model_config).network


def test_no_family_is_left_out_here():
    assert {family_of(config).name for config in TOY_CONFIGS.values()} == set(FAMILIES)


def test_a_grid_that_cannot_be_is_refused_with_one_that_can(bundle: Bundle):
    config = bundle.model_config
    if len(set(toy_grids(config))) > 1:
        pytest.skip("it takes any size")
    side = family_of(config).trained_side(config)
    with pytest.raises(ValueError, match=rf"grid of 2x3 tokens.*{side}x{side}"):
        plan_sequence(
            request_of(grid=(2, 3), sampler=samplers_of(config)[0]), PIXELS_PER_TOKEN, None, config
        )
