"""`/v1/images/generations` and `/v1/models`, through the official `openai` client and by hand."""

import base64
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import numpy
import openai
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fit_serve.errors import EngineFailed, NotReady, Overloaded
from fit_serve.http_api.stored_images import StoredImages
from support.fake_engine import LIMITS, FakeEngine, gradient
from support.http_client import build_app, client_of

PATH = "/v1/images/generations"
ASKED: dict[str, Any] = {"prompt": "car side", "size": "48x32", "seed": 7}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    return client_of(engine)


def sdk(engine: FakeEngine, retries: int = 0) -> openai.AsyncOpenAI:
    transport = httpx2.ASGITransport(app=build_app(engine))
    return openai.AsyncOpenAI(
        api_key="EMPTY",
        base_url="http://server/v1",
        max_retries=retries,
        http_client=httpx2.AsyncClient(transport=transport),
    )


@pytest.fixture
async def official(engine: FakeEngine) -> AsyncIterator[openai.AsyncOpenAI]:
    async with sdk(engine) as client:
        yield client


def pixels_of(data: str | None) -> numpy.ndarray:
    assert data is not None
    return numpy.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


async def test_the_official_client_gets_its_images(official: openai.AsyncOpenAI) -> None:
    answer = await official.images.generate(
        model=LIMITS.name, prompt="sunflower", n=2, size="48x32", extra_body={"seed": 7}
    )
    assert answer.data is not None
    assert answer.size == "48x32"  # pyright: ignore[reportUnnecessaryComparison]
    assert answer.output_format == "png"
    assert answer.background == "opaque"
    assert answer.usage is not None
    assert answer.usage.output_tokens == answer.usage.total_tokens == 2 * 6
    for index, image in enumerate(answer.data):
        assert numpy.array_equal(pixels_of(image.b64_json), gradient(32, 48, 7 + index))


async def test_the_official_client_streams(official: openai.AsyncOpenAI) -> None:
    stream = await official.images.generate(
        prompt="sunflower", size="48x32", n=2, stream=True, partial_images=0
    )
    events = [event async for event in stream]
    assert [event.type for event in events] == ["image_generation.completed"] * 2
    first = events[0]
    assert first.type == "image_generation.completed"
    assert (first.size, first.output_format, first.quality) == ("48x32", "png", "auto")
    assert first.usage.output_tokens == 6
    assert pixels_of(first.b64_json).shape == (32, 48, 3)


async def test_the_official_client_lists_models(official: openai.AsyncOpenAI) -> None:
    listed = [model async for model in official.models.list()]
    assert [model.id for model in listed] == [LIMITS.name]
    assert (await official.models.retrieve(LIMITS.name)).id == LIMITS.name
    with pytest.raises(openai.NotFoundError) as caught:
        await official.models.retrieve("gpt-image-1")
    assert caught.value.code == "model_not_found"


@pytest.mark.parametrize(
    ("asked", "raised", "param", "code"),
    [
        ({"prompt": "zebra"}, openai.BadRequestError, "prompt", "unknown_class"),
        ({"model": "dall-e-3"}, openai.NotFoundError, "model", "model_not_found"),
        ({"size": "33x33"}, openai.BadRequestError, "size", None),
        ({"size": "1024x1024"}, openai.BadRequestError, "size", "image_too_large"),
        ({"size": "large"}, openai.BadRequestError, "size", None),
        ({"n": 11}, openai.BadRequestError, "n", None),
        ({"background": "transparent"}, openai.BadRequestError, "background", None),
        ({"quality": "best"}, openai.BadRequestError, "quality", None),
        ({"output_compression": 50}, openai.BadRequestError, "output_compression", None),
    ],
)
async def test_refusals_are_the_clients_own_errors(
    official: openai.AsyncOpenAI,
    engine: FakeEngine,
    asked: dict[str, Any],
    raised: type[openai.APIStatusError],
    param: str,
    code: str | None,
) -> None:
    with pytest.raises(raised) as caught:
        await official.images.generate(**{"prompt": "sunflower", **asked})
    assert (caught.value.param, caught.value.code) == (param, code)
    assert param in str(caught.value)
    assert engine.submitted == []


@pytest.mark.parametrize(
    ("refusal", "raised"),
    [
        (Overloaded("full", 0.01), openai.RateLimitError),
        (NotReady("starting", 0.01), openai.InternalServerError),
        (EngineFailed("failed"), openai.InternalServerError),
    ],
)
async def test_what_may_pass_is_retried_by_the_client(
    refusal: Exception, raised: type[Exception]
) -> None:
    class Once(FakeEngine):
        calls = 0

        def submit(self, sequences, on_progress=None):
            self.calls += 1
            if self.calls == 1:
                raise refusal
            return super().submit(sequences, on_progress)

    async with sdk(Once(), retries=0) as client:
        with pytest.raises(raised):
            await client.images.generate(prompt="sunflower", size="48x32")
    async with sdk(Once(), retries=1) as client:
        answer = await client.images.generate(prompt="sunflower", size="48x32")
    assert answer.data is not None


def test_nulls_and_unknown_fields_mean_nothing(client: TestClient, engine: FakeEngine) -> None:
    optional = [
        *("model", "n", "size", "quality", "response_format", "output_format", "background"),
        *("output_compression", "moderation", "style", "stream", "partial_images", "seed", "user"),
        *("num_inference_steps", "guidance_scale", "true_cfg_scale", "class_labels"),
        *("width", "height"),
    ]
    body = {"prompt": "2", **dict.fromkeys(optional), "lora": {"name": "x"}, "frame_count": 3}
    answer = client.post(PATH, json=body)
    assert answer.status_code == 200
    (sequence,) = engine.submitted
    assert (sequence.height, sequence.width) == (LIMITS.default_side, LIMITS.default_side)
    assert sequence.num_inference_steps == LIMITS.defaults.num_inference_steps
    assert sequence.class_label == 2


@pytest.mark.parametrize(
    ("said", "meant"),
    [("low", "fast"), ("medium", "balanced"), ("hd", "exact"), ("fast", "fast"), ("auto", "exact")],
)
def test_words_for_quality_are_our_presets(
    client: TestClient, engine: FakeEngine, said: str, meant: str
) -> None:
    answer = client.post(PATH, json={**ASKED, "quality": said})
    assert answer.json()["quality"] == said
    assert engine.submitted[0].quality == meant


def test_extensions_reach_the_engine(client: TestClient, engine: FakeEngine) -> None:
    body = {
        "class_labels": [1],
        "width": 48,
        "height": 64,
        "num_inference_steps": 3,
        "true_cfg_scale": 1.5,
        "seed": 9,
    }
    assert client.post(PATH, json=body).status_code == 200
    (sequence,) = engine.submitted
    assert (sequence.class_label, sequence.width, sequence.height) == (1, 48, 64)
    assert (sequence.num_inference_steps, sequence.guidance_scale) == (3, 1.5)
    assert sequence.seed == 9


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": 3}, "prompt"),
        ({"class_labels": [1, 2]}, "class_labels"),
        ({"class_labels": ["1"]}, "class_labels"),
        ({"prompt": "2", "width": 48}, "height"),
        ({"prompt": "2", "stream": "yes"}, "stream"),
        ({"prompt": "2", "partial_images": 4}, "partial_images"),
        ({"prompt": "2", "response_format": "file", "n": 2}, "response_format"),
        ({"prompt": "2", "response_format": "pdf"}, "response_format"),
        ({"prompt": "2", "seed": -1}, "seed"),
    ],
)
def test_a_known_field_with_a_bad_value_is_named(
    client: TestClient, engine: FakeEngine, body: dict[str, Any], param: str
) -> None:
    answer = client.post(PATH, json=body)
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == param
    assert param in error["message"]
    assert engine.submitted == []


def test_an_image_can_be_fetched_by_its_url(client: TestClient) -> None:
    answer = client.post(PATH, json={**ASKED, "response_format": "url"})
    (data,) = answer.json()["data"]
    assert data["b64_json"] is None
    fetched = client.get(data["url"])
    assert fetched.headers["content-type"] == "image/png"
    pixels = numpy.asarray(Image.open(io.BytesIO(fetched.content)))
    assert numpy.array_equal(pixels, gradient(32, 48, 7))
    missing = client.get("/v1/images/img-none/content")
    assert missing.status_code == 404
    assert missing.json()["error"]["code"] == "image_not_found"


def test_a_file_is_the_bytes_themselves(client: TestClient) -> None:
    answer = client.post(PATH, json={**ASKED, "response_format": "file", "output_format": "webp"})
    assert answer.headers["content-type"] == "image/webp"
    assert "content-disposition" in answer.headers


def test_compression_makes_a_jpeg_smaller(client: TestClient) -> None:
    sizes = [
        len(
            client.post(
                PATH,
                json={
                    **ASKED,
                    "response_format": "file",
                    "output_format": "jpeg",
                    "output_compression": q,
                },
            ).content
        )
        for q in (0, 50, 100)
    ]
    assert sizes == sorted(sizes)
    assert len(set(sizes)) == 3


def test_a_refused_stream_is_no_stream() -> None:
    client = client_of(FakeEngine(refusal=Overloaded("full", 3.0)))
    answer = client.post(PATH, json={**ASKED, "stream": True})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"


def test_what_a_benchmark_client_sends_is_answered(client: TestClient) -> None:
    """The requests of vLLM-Omni's and SGLang's clients, field by field (serving conventions)."""
    assert client.get("/health").status_code == 200
    assert client.get("/v1/model_info").json() == {"model_path": LIMITS.name}
    body = {
        "model": LIMITS.name,
        "prompt": "sunflower",
        "n": 1,
        "size": "48x32",
        "response_format": "b64_json",
        "num_inference_steps": 4,
        "seed": 42,
        "negative_prompt": "blurry",
        "generator_device": "cpu",
    }
    answer = client.post(PATH, json=body, headers={"authorization": "Bearer EMPTY"})
    assert answer.status_code == 200
    told = answer.json()
    assert base64.b64decode(told["data"][0]["b64_json"])
    assert told["id"].startswith("gen-")
    assert told["inference_time_s"] >= 0
    json.dumps(told)


def test_stored_images_are_bounded_and_forgotten() -> None:
    now = 0.0
    stored = StoredImages(max_bytes=10, lifetime_s=5.0, clock=lambda: now)
    first = stored.put(b"x" * 6, "image/png")
    second = stored.put(b"y" * 4, "image/png")
    assert stored.get(first) is not None
    third = stored.put(b"z" * 4, "image/png")
    assert stored.get(first) is None
    assert stored.get(second) is not None
    now = 5.0
    assert stored.get(second) is None
    assert stored.get(third) is None
    large = stored.put(b"w" * 99, "image/png")
    assert stored.get(large) is not None
