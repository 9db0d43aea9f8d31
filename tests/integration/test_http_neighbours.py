"""Law 1 through the front door: whatever is asked at once is answered as if it were alone."""

import asyncio
import io
from pathlib import Path
from typing import Any

import httpx
import numpy
from PIL import Image

from support.whole_server import serving

JSON = {"accept": "application/json"}

ASKED: list[dict[str, Any]] = [
    {"class": "kite", "height": 32, "width": 96, "seed": 1},
    {"class": "heron", "height": 96, "width": 32, "seed": 1, "guidance_scale": 1.0},
    {"class": 0, "height": 64, "width": 64, "seed": 2, "num_inference_steps": 7},
    {"class": "teapot", "height": 80, "width": 48, "seed": 3, "sampler": "heun"},
    {"class": "kite", "height": 48, "width": 48, "seed": 4, "sampler": "sde"},
    {"class": "heron", "height": 48, "width": 48, "seed": 4, "guidance_interval": [0.2, 0.7]},
    {"class": "heron", "height": 64, "width": 32, "seed": 5, "guidance_scale": 4.0},
    {"class": "teapot", "height": 32, "width": 32, "seed": 6, "num_inference_steps": 1},
]


async def picture(client: httpx.AsyncClient, asked: dict[str, Any]) -> numpy.ndarray:
    answer = await client.post("/generate", json=asked)
    assert answer.status_code == 200, answer.text
    assert answer.headers["x-seed"] == str(asked["seed"])
    pixels = numpy.asarray(Image.open(io.BytesIO(answer.content))).astype(int)
    assert pixels.shape == (asked["height"], asked["width"], 3)
    return pixels


async def test_mixed_requests_at_once_are_answered_as_alone(toy_folder: Path) -> None:
    async with serving(toy_folder) as client:
        together = await asyncio.gather(*(picture(client, asked) for asked in ASKED))
        alone = [await picture(client, asked) for asked in ASKED]
        for one, other in zip(together, alone, strict=True):
            assert numpy.abs(one - other).max() <= 1
        metrics = (await client.get("/metrics")).text
    done = 'fit_request_success_total{finished_reason="completed",model_name="toy"}'
    assert f"{done} {2 * len(ASKED):.1f}" in metrics
    assert 'fit_num_requests_running{model_name="toy"} 0.0' in metrics
    assert 'fit_num_requests_waiting{model_name="toy"} 0.0' in metrics


async def test_a_client_that_leaves_and_one_that_errs_harm_nobody(toy_folder: Path) -> None:
    async with serving(toy_folder) as client:
        alone = await picture(client, ASKED[0])
        long = {**ASKED[2], "num_inference_steps": 400}
        leaver = asyncio.create_task(client.post("/generate", json=long))
        stays = asyncio.create_task(picture(client, ASKED[0]))
        refused = await client.post("/generate", json={**ASKED[1], "height": 33})
        leaver.cancel()
        assert refused.status_code == 400
        assert numpy.abs(await stays - alone).max() <= 1
        assert (await client.get("/readyz")).status_code == 200


async def test_more_than_fits_the_queue_is_told_to_come_back(toy_folder: Path) -> None:
    asked = {**ASKED[2], "num_inference_steps": 30, "num_images": 16}
    async with serving(toy_folder) as client:
        answers = await asyncio.gather(
            *(client.post("/generate", json=asked, headers=JSON) for _ in range(3))
        )
        answered = [answer.json() for answer in answers if answer.status_code == 200]
        refused = [answer for answer in answers if answer.status_code == 429]
        assert len(answered) + len(refused) == 3
        assert answered
        assert refused
        assert all(int(answer.headers["retry-after"]) >= 1 for answer in refused)
        assert [len(body["images"]) for body in answered] == [16] * len(answered)
