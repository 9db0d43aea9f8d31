"""A copied autoencoder decodes what a network was trained on, whatever factors it had before."""

import json
from pathlib import Path

import pytest
import torch

from fit_models.autoencoder import Autoencoder
from fit_models.autoencoder_copy import copy_autoencoder
from support.small_autoencoders import write_small_autoencoder


@pytest.mark.parametrize("own", [{}, {"shift_factor": 0.3, "scaling_factor": 1.7}])
def test_latents_of_a_copy_are_the_sources_moved_and_scaled(tmp_path: Path, own: dict[str, float]):
    source, copy = tmp_path / "source", tmp_path / "copy"
    write_small_autoencoder(source)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, **own}))
    copy_autoencoder(source, copy, shift=-0.2, scale=0.8)
    images = torch.randint(256, (1, 3, 32, 32), dtype=torch.uint8)
    first, second = (Autoencoder.from_folder(folder) for folder in (source, copy))
    latents = first.encode(images)
    torch.testing.assert_close(second.encode(images), (latents + 0.2) * 0.8)
    assert torch.equal(second.decode((latents + 0.2) * 0.8), first.decode(latents))
