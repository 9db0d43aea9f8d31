"""`POST /generate` as a client sees it: the image, or JSON with images; and leaving early."""

import asyncio
import base64
import io

import numpy
import pytest
from PIL import Image
from starlette.testclient import TestClient

from fit_serve.errors import DeadlineInfeasible, NotReady, Overloaded, ServeError
from fit_serve.http_api.answers import wants_json
from fit_serve.limits import NUM_DRAWN_SEEDS
from support.fake_engine import LIMITS, FakeEngine, gradient
from support.http_client import Knock, build_app, client_of

ASKED = {"class": "Car Side", "height": 32, "width": 48, "seed": 7}


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def client(engine: FakeEngine) -> TestClient:
    return client_of(engine)


def test_the_plain_answer_is_the_image(client: TestClient) -> None:
    answer = client.post("/generate", json=ASKED)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["x-seed"] == "7"
    assert float(answer.headers["x-inference-time-ms"]) == 500
    assert answer.headers["content-disposition"] == 'inline; filename="car-side-32x48-7.png"'
    assert answer.headers["x-request-id"].startswith("req-")
    assert "decode;dur=125.0" in answer.headers["server-timing"]
    pixels = numpy.asarray(Image.open(io.BytesIO(answer.content)))
    assert numpy.array_equal(pixels, gradient(32, 48, 7))


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
def test_the_format_is_the_one_asked_for(client: TestClient, output_format: str) -> None:
    answer = client.post("/generate", json={**ASKED, "output_format": output_format})
    assert answer.headers["content-type"] == f"image/{output_format}"
    assert Image.open(io.BytesIO(answer.content)).format == output_format.upper()


def test_what_is_left_out_or_null_is_the_default_of_the_model(
    client: TestClient, engine: FakeEngine
) -> None:
    nothing = ["num_images", "num_inference_steps", "guidance_scale", "guidance_interval"]
    nulls = dict.fromkeys([*nothing, "sampler", "output_format"])
    client.post("/generate", json=ASKED)
    client.post("/generate", json={**ASKED, **nulls})
    for sequence in engine.submitted:
        assert sequence.num_inference_steps == LIMITS.defaults.num_inference_steps
        assert sequence.guidance_scale == LIMITS.defaults.guidance_scale
        assert sequence.guidance_interval == LIMITS.defaults.guidance_interval
        assert sequence.sampler == LIMITS.defaults.sampler
    assert len(engine.submitted) == 2


def test_everything_asked_for_reaches_the_engine(client: TestClient, engine: FakeEngine) -> None:
    more = {
        "num_inference_steps": 3,
        "guidance_scale": 1,
        "guidance_interval": [0, 0.5],
        "sampler": "heun",
        "seed": 2**63 - 1,
    }
    assert client.post("/generate", json={**ASKED, **more}).status_code == 200
    (sequence,) = engine.submitted
    assert (sequence.class_label, sequence.height, sequence.width) == (2, 32, 48)
    assert (sequence.num_inference_steps, sequence.guidance_scale) == (3, 1.0)
    assert (sequence.guidance_interval, sequence.sampler) == ((0.0, 0.5), "heun")
    assert sequence.seed == 2**63 - 1


def test_a_seed_is_drawn_for_those_who_give_none_and_returned(
    client: TestClient, engine: FakeEngine
) -> None:
    asked = {key: value for key, value in ASKED.items() if key != "seed"}
    seeds = {int(client.post("/generate", json=asked).headers["x-seed"]) for _ in range(4)}
    assert len(seeds) == 4
    assert all(0 <= seed < NUM_DRAWN_SEEDS for seed in seeds)
    assert {sequence.seed for sequence in engine.submitted} == seeds


def test_json_says_everything_that_made_the_image(client: TestClient) -> None:
    answer = client.post("/generate", json=ASKED, headers={"accept": "application/json"})
    said = answer.json()
    (image,) = said.pop("images")
    picture = Image.open(io.BytesIO(base64.b64decode(image.pop("b64_json"))))
    assert numpy.array_equal(numpy.asarray(picture), gradient(32, 48, 7))
    assert image == {"seed": 7, "output_format": "png"}
    timings = said.pop("timings_ms")
    assert (timings["queue"], timings["inference"], timings["decode"]) == (250, 500, 125)
    assert said.pop("id").startswith("gen-")
    assert said.pop("created") > 1_700_000_000
    assert said == {
        "model": "fake-fit",
        "class": {"id": 2, "name": "car_side"},
        "height": 32,
        "width": 48,
        "seed": 7,
        "num_inference_steps": 20,
        "guidance_scale": 2.5,
        "guidance_interval": [0.1, 0.9],
        "sampler": "euler",
        "quality": "exact",
    }


def test_several_images_are_always_json(client: TestClient) -> None:
    answer = client.post("/generate", json={**ASKED, "num_images": 3})
    assert answer.headers["content-type"] == "application/json"
    assert [image["seed"] for image in answer.json()["images"]] == [7, 8, 9]


@pytest.mark.parametrize(
    ("accept", "json_wanted"),
    [
        ("", False),
        ("*/*", False),
        ("image/png", False),
        ("application/json", True),
        ("Application/JSON; q=0.5", True),
        ("application/json, text/plain, */*", True),
        ("image/*, application/json;q=0.5", False),
        ("application/json, image/*;q=0.8", True),
        ("application/json;q=0", False),
        ("application/json;q=what", True),
        (",;;q=,", False),
    ],
)
def test_json_is_for_those_who_name_it(accept: str, json_wanted: bool) -> None:
    assert wants_json(accept) is json_wanted


def test_a_valid_request_id_is_echoed_and_any_other_replaced(client: TestClient) -> None:
    def echo(given: str) -> str:
        answer = client.post("/generate", json=ASKED, headers={"x-request-id": given})
        return answer.headers["x-request-id"]

    assert echo("trace-01:a/b") == "trace-01:a/b"
    for bad in ("", "a b", "x" * 129, 'a"b'):
        assert echo(bad).startswith("req-")


def test_two_clients_with_one_request_id_do_not_notice_each_other(
    client: TestClient, engine: FakeEngine
) -> None:
    for _ in range(2):
        answer = client.post("/generate", json=ASKED, headers={"x-request-id": "same"})
        assert answer.status_code == 200
    first, second = engine.submitted
    assert first.sequence_id != second.sequence_id


@pytest.mark.parametrize(
    ("refusal", "status", "kind", "wait"),
    [
        (Overloaded("the queue is full", 1.2), 429, "overloaded_error", "2"),
        (NotReady("draining", 0.0), 503, "service_unavailable", "1"),
    ],
)
def test_a_refusal_for_now_says_when_to_come_back(
    refusal: ServeError, status: int, kind: str, wait: str
) -> None:
    answer = client_of(FakeEngine(refusal=refusal)).post("/generate", json=ASKED)
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert answer.headers["retry-after"] == wait
    assert answer.headers.get("connection") == ("close" if status == 503 else None)


async def test_a_client_that_leaves_stops_its_sequences_and_no_others() -> None:
    engine = FakeEngine(patient=True)
    app = build_app(engine)
    leaver = Knock("/generate", {**ASKED, "num_images": 2})
    stayer = Knock("/generate", {**ASKED, "seed": 100})
    tasks = [asyncio.create_task(knock.on(app)) for knock in (leaver, stayer)]
    async with asyncio.timeout(5):
        while len(engine.submitted) < 3:
            await asyncio.sleep(0)
        leaver.leaves.set()
        await tasks[0]
        (kept,) = [s.sequence_id for s in engine.submitted if s.seed == 100]
        assert engine.unfinished == [kept]
        engine.finish(kept)
        await tasks[1]
    assert kept not in engine.stopped
    assert stayer.sent[0]["status"] == 200


def test_quality_priority_and_deadline_reach_the_engine(
    client: TestClient, engine: FakeEngine
) -> None:
    asked = {**ASKED, "quality": "fast", "priority": -2, "deadline_ms": 1500}
    assert client.post("/generate", json=asked).status_code == 200
    (sequence,) = engine.submitted
    assert (sequence.quality, sequence.priority, sequence.deadline_s) == ("fast", -2, 1.5)


def test_a_preset_cuts_the_default_guidance_interval_and_no_other(
    client: TestClient, engine: FakeEngine
) -> None:
    own = [0.0, 0.5]
    for more in ({"quality": "fast"}, {"quality": "fast", "guidance_interval": own}, {}):
        assert client.post("/generate", json={**ASKED, **more}).status_code == 200
    cut, said, exact = (sequence.guidance_interval for sequence in engine.submitted)
    assert exact == LIMITS.defaults.guidance_interval
    assert cut == (max(0.2, exact[0]), exact[1])
    assert said == tuple(own)


def test_a_deadline_that_cannot_be_kept_is_told_with_the_prediction(
    client: TestClient, engine: FakeEngine
) -> None:
    engine.refusal = DeadlineInfeasible(0.5, 3.25)
    answer = client.post("/generate", json={**ASKED, "deadline_ms": 500})
    assert answer.status_code == 429
    assert answer.headers["retry-after"] == "3"
    error = answer.json()["error"]
    assert (error["param"], error["code"]) == ("deadline_ms", "deadline_infeasible")
    assert "deadline_ms 500" in error["message"]
    assert "3250 ms" in error["message"]
