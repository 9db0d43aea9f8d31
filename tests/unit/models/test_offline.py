"""The offline solvers agree with the engine's samplers where both converge."""

from __future__ import annotations

import pytest
import torch

from fit_models.bundle import Bundle, load_bundle
from fit_models.diffusion.guidance import Guidance
from fit_models.offline import OFFLINE_SAMPLERS, sample_offline
from support.toy_bundle import make_toy_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_toy_bundle(tmp_path_factory.mktemp("toy"))))


def test_every_offline_solver_makes_the_same_picture(bundle: Bundle) -> None:
    pictures = [
        sample_offline(bundle, 1, 64, 96, 5, Guidance(2.0), sampler, num_inference_steps=20)
        for sampler in OFFLINE_SAMPLERS
    ]
    for picture in pictures:
        assert picture.shape == (3, 64, 96)
        assert picture.dtype == torch.uint8
        difference = (picture.int() - pictures[0].int()).abs()
        assert float(difference.float().mean()) < 1.0


def test_seeds_and_labels_matter(bundle: Bundle) -> None:
    one = sample_offline(bundle, 1, 32, 32, 5, Guidance(1.0))
    assert torch.equal(one, sample_offline(bundle, 1, 32, 32, 5, Guidance(1.0)))
    assert not torch.equal(one, sample_offline(bundle, 1, 32, 32, 6, Guidance(1.0)))
    assert not torch.equal(one, sample_offline(bundle, 2, 32, 32, 5, Guidance(1.0)))


def test_bad_input_names_field_value_and_limit(bundle: Bundle) -> None:
    with pytest.raises(ValueError, match="width is 40; it must be a multiple of 16"):
        sample_offline(bundle, 1, 32, 40, 0, Guidance(1.0))
    with pytest.raises(ValueError, match="'euler' is unknown; known: dopri5"):
        sample_offline(bundle, 1, 32, 32, 0, Guidance(1.0), "euler")
