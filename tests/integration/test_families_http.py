"""Every family from its released file through `convert` to an answered request."""

import asyncio
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy
import pytest
from PIL import Image
from safetensors.torch import save_file

from fit_models.released.conversion import BundleOptions, convert_released
from support.small_autoencoders import write_small_autoencoder
from support.toy_families import (
    TEXT_FAMILIES,
    TOY_CONFIGS,
    subject_of,
    toy_grids,
    toy_network,
    toy_text_encoder,
)
from support.whole_server import serving

BY_SHAPES = {"FiTv1": "noise", "DiT": "noise", "SiT": "velocity"}
PIXELS = 16  # of a token


async def picture(client: Any, asked: dict[str, Any]) -> numpy.ndarray:
    answer = await client.post("/generate", json=asked)
    assert answer.status_code == 200, answer.text
    return numpy.asarray(Image.open(io.BytesIO(answer.content))).astype(int)


@pytest.mark.parametrize("name", TOY_CONFIGS)
async def test_requests_at_once_are_answered_as_alone(name: str, tmp_path: Path):
    state = toy_network(name).state_dict()
    save_file({k: v.contiguous() for k, v in state.items()}, tmp_path / "released.safetensors")
    options = BundleOptions(config=TOY_CONFIGS[name])
    if name in TEXT_FAMILIES:
        folder = toy_text_encoder(tmp_path / "language-model", name)
        options = replace(options, text_encoder=folder)
    if name in BY_SHAPES:
        options = BundleOptions(num_heads=2, prediction=BY_SHAPES[name])
    convert_released(
        tmp_path / "released.safetensors",
        tmp_path / "bundle",
        write_small_autoencoder(tmp_path / "autoencoder"),
        options,
    )
    grids = toy_grids(TOY_CONFIGS[name])
    asked = [
        {
            **subject_of(name, i),
            "height": max(2, rows) * PIXELS,
            "width": max(2, columns) * PIXELS,
            "seed": i,
            "num_inference_steps": 3 + i,
            "guidance_scale": (1.0, 2.0)[i % 2],
        }
        for i, (rows, columns) in enumerate((*grids, grids[0]))
    ]
    async with serving(tmp_path / "bundle") as client:
        together = await asyncio.gather(*(picture(client, each) for each in asked))
        for each, found in zip(asked, together, strict=True):
            assert found.shape == (each["height"], each["width"], 3)
            assert numpy.abs(await picture(client, each) - found).max() <= 1
        other = await client.post("/generate", json={**asked[0], "sampler": "rk4"})
        assert other.status_code == 400
        assert "sampler" in other.text
