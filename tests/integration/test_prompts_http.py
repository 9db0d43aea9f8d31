"""A model that reads prompts through the whole server: neighbours, caches, refusals, metadata."""

import asyncio
import io
import json
from pathlib import Path
from typing import Any

import httpx
import numpy
import pytest
from PIL import Image

from fit_models.bundle import read_network_config
from fit_models.families import caption_reading
from support.toy_families import TEXT_FAMILIES, make_family_bundle
from support.whole_server import serving

SIZE: dict[str, Any] = {"height": 64, "width": 48, "num_inference_steps": 3}


@pytest.fixture(scope="module", params=TEXT_FAMILIES)
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_family_bundle(tmp_path_factory.mktemp("bundle"), request.param)


async def image(client: httpx.AsyncClient, **asked: Any) -> Image.Image:
    answer = await client.post("/generate", json={**SIZE, **asked})
    assert answer.status_code == 200, answer.text
    return Image.open(io.BytesIO(answer.content))


async def metric(client: httpx.AsyncClient, name: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next(float(line.split()[-1]) for line in lines if line.startswith(f"fit_{name}{{"))


async def test_a_picture_does_not_notice_other_prompts_nor_whether_its_own_was_known(folder: Path):
    prompts = ("a heron", "two kites over a teapot, at dawn", "", "a heron", "a heron at noon")
    asked = [
        {
            "prompt": prompt,
            "seed": 5,
            "height": (32, 64)[i % 2],
            "negative_prompt": "fog" * (i % 2),
        }
        for i, prompt in enumerate(prompts)
    ]
    async with serving(folder) as client:
        together = await asyncio.gather(*(image(client, **each) for each in asked))
        known = [await image(client, **each) for each in asked]
    async with serving(folder) as client:
        alone = [await image(client, **each) for each in asked]
    for pictures in zip(together, known, alone, strict=True):
        first, *others = (numpy.asarray(picture).astype(int) for picture in pictures)
        assert all(numpy.abs(first - other).max() <= 1 for other in others)
    assert numpy.abs(numpy.asarray(alone[0]).astype(int) - numpy.asarray(alone[4])).max() > 3


async def test_one_prompt_asked_for_many_times_at_once_is_read_once(folder: Path):
    async with serving(folder) as client:
        before = await metric(client, "prompt_read_time_seconds_count")
        await asyncio.gather(*(image(client, prompt="a kite", seed=i) for i in range(6)))
        assert await metric(client, "prompt_read_time_seconds_count") == before + 1
        hits = await metric(client, "prompt_cache_hits_total")
        await image(client, prompt="a kite")
        assert await metric(client, "prompt_read_time_seconds_count") == before + 1
        assert await metric(client, "prompt_cache_hits_total") == hits + 2
        assert await metric(client, "prompt_cache_bytes") > 0
        assert await metric(client, "caption_cache_bytes") > 0
        assert await metric(client, "caption_cache_misses_total") == 2  # the empty one, and this


async def test_the_file_says_what_was_asked_for(folder: Path):
    async with serving(folder) as client:
        made = await image(client, prompt="a kite", negative_prompt="fog", seed=3)
        said = json.loads(made.text["parameters"])  # pyright: ignore[reportAttributeAccessIssue]
        assert (said["prompt"], said["negative_prompt"], said["seed"]) == ("a kite", "fog", 3)
        assert not {"class", "class_label"} & said.keys()


async def test_too_many_tokens_or_characters_are_refused_with_the_numbers(folder: Path):
    async with serving(folder) as client:
        for field in ("prompt", "negative_prompt"):
            body = {**SIZE, "prompt": "a", field: "a kite " * 100}
            answer = await client.post("/generate", json=body)
            reading = caption_reading(read_network_config(folder))
            assert reading is not None
            if reading.max_tokens > 701:
                assert answer.status_code == 200
                continue
            error = answer.json()["error"]
            assert (answer.status_code, error["param"]) == (400, field)
            assert error["code"] == "prompt_too_long"
            assert f"{field} has 701 tokens; the limit is 256" in error["message"]
        answer = await client.post("/generate", json={**SIZE, "prompt": "a" * 4001})
        assert answer.status_code == 400
        assert "4001 characters; the limit is 4000" in answer.text


async def test_a_class_and_an_offline_solver_are_refused(folder: Path):
    async with serving(folder) as client:
        answer = await client.post("/generate", json={**SIZE, "class": 1})
        assert answer.status_code == 400
        assert "reads prompts; give prompt" in answer.text
        answer = await client.post("/generate", json={**SIZE, "prompt": "a", "sampler": "dopri5"})
        assert answer.status_code == 400
        assert "euler, heun, midpoint" in answer.text
