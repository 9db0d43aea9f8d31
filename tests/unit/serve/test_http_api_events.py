"""`POST /generate` as a stream of events, and `DELETE /requests/{id}`."""

import asyncio
import json
from typing import Any

import pytest
from starlette.testclient import TestClient

from fit_serve.errors import EngineFailed, Overloaded
from fit_serve.http_api import event_stream
from fit_serve.http_api.answers import wants_events
from support.fake_engine import LIMITS, FakeEngine
from support.http_client import Knock, build_app, client_of

ASKED = {"class": "Car Side", "height": 32, "width": 48, "seed": 7}
EVENTS = "text/event-stream"


def events_of(text: str) -> list[tuple[str, Any]]:
    """(name, data) of every event; comments are left out."""
    events = []
    for block in text.split("\n\n"):
        lines = [line for line in block.splitlines() if not line.startswith(":")]
        if lines:
            name, data = lines
            assert name.startswith("event: ")
            assert data.startswith("data: ")
            events.append((name.removeprefix("event: "), json.loads(data.removeprefix("data: "))))
    return events


def told(knock: Knock) -> list[tuple[str, Any]]:
    """What a raw client has got so far."""
    bodies = [message.get("body", b"") for message in knock.sent]
    return events_of(b"".join(bodies).decode())


async def wait_for(condition) -> None:
    async with asyncio.timeout(5):
        while not condition():
            await asyncio.sleep(0.001)


def test_the_stream_begins_with_its_id_and_ends_with_what_json_would_have_said() -> None:
    client = client_of(FakeEngine())
    answer = client.post("/generate", json=ASKED, headers={"accept": EVENTS})
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith(EVENTS)
    assert answer.headers["x-accel-buffering"] == "no"
    assert answer.headers["cache-control"] == "no-store"
    events = events_of(answer.text)
    assert [name for name, _ in events] == ["accepted", "progress", "completed"]
    total = LIMITS.defaults.num_inference_steps
    progress = {"image_index": 0, "evaluations_done": 1, "evaluations_total": total}
    assert events[1][1] == progress
    in_json = client.post("/generate", json=ASKED, headers={"accept": "application/json"}).json()
    changing = {"id", "created", "timings_ms"}
    completed = events[2][1]
    assert completed["id"] == events[0][1]["id"]
    assert {k: v for k, v in completed.items() if k not in changing} == {
        k: v for k, v in in_json.items() if k not in changing
    }


@pytest.mark.parametrize(
    ("body", "engine", "status"),
    [
        ({**ASKED, "height": 33}, FakeEngine(), 400),
        (ASKED, FakeEngine(refusal=Overloaded("full", 3.0)), 429),
    ],
)
def test_a_refusal_is_no_stream(body: dict[str, Any], engine: FakeEngine, status: int) -> None:
    answer = client_of(engine).post("/generate", json=body, headers={"accept": EVENTS})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/json"
    assert answer.json()["error"]["message"]


async def test_a_failure_after_the_beginning_is_the_last_event() -> None:
    engine = FakeEngine(patient=True)
    knock = Knock("/generate", ASKED, accept=EVENTS)
    answering = asyncio.create_task(knock.on(build_app(engine)))
    await wait_for(lambda: told(knock))
    engine.fail(engine.unfinished[0], EngineFailed("the step failed; the log has the cause"))
    await asyncio.wait_for(answering, 5)
    name, data = told(knock)[-1]
    assert name == "error"
    assert data["error"]["type"] == "server_error"
    assert set(data["error"]) == {"message", "type", "param", "code"}


async def test_a_bug_after_the_beginning_is_told_without_its_details() -> None:
    engine = FakeEngine(patient=True)
    knock = Knock("/generate", ASKED, accept=EVENTS)
    answering = asyncio.create_task(knock.on(build_app(engine)))
    await wait_for(lambda: told(knock))
    engine.fail(engine.unfinished[0], RuntimeError("secret"))
    await asyncio.wait_for(answering, 5)
    name, data = told(knock)[-1]
    assert name == "error"
    assert "secret" not in json.dumps(data)


async def test_a_reader_that_leaves_stops_its_sequences_and_no_others() -> None:
    engine = FakeEngine(patient=True)
    app = build_app(engine)
    leaver = Knock("/generate", {**ASKED, "num_images": 2}, accept=EVENTS)
    stayer = Knock("/generate", {**ASKED, "seed": 100}, accept=EVENTS)
    tasks = [asyncio.create_task(knock.on(app)) for knock in (leaver, stayer)]
    await wait_for(lambda: told(leaver) and told(stayer))
    leaver.leaves.set()
    await asyncio.wait_for(tasks[0], 5)
    (kept,) = [s.sequence_id for s in engine.submitted if s.seed == 100]
    assert engine.unfinished == [kept]
    engine.finish(kept)
    await asyncio.wait_for(tasks[1], 5)
    assert [name for name, _ in told(stayer)][-1] == "completed"


async def test_a_silent_stream_is_kept_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(event_stream, "KEEP_ALIVE_S", 0.01)
    engine = FakeEngine(patient=True)
    knock = Knock("/generate", ASKED, accept=EVENTS)
    answering = asyncio.create_task(knock.on(build_app(engine)))
    await wait_for(lambda: any(m.get("body", b"").startswith(b":") for m in knock.sent))
    engine.finish(engine.unfinished[0])
    await asyncio.wait_for(answering, 5)
    assert [name for name, _ in told(knock)][-1] == "completed"


@pytest.mark.parametrize("accept", ["*/*", EVENTS])
async def test_a_request_is_cancelled_by_its_id(accept: str) -> None:
    engine = FakeEngine(patient=True)
    app = build_app(engine)
    knock = Knock("/generate", ASKED, accept=accept)
    answering = asyncio.create_task(knock.on(app))
    await wait_for(lambda: engine.submitted)
    request_id = engine.submitted[0].sequence_id.rpartition("-")[0]
    client = TestClient(app)
    answer = await asyncio.to_thread(client.delete, f"/requests/{request_id}")
    assert (answer.status_code, answer.content) == (204, b"")
    await asyncio.wait_for(answering, 5)
    assert engine.unfinished == []
    if accept == EVENTS:
        assert told(knock)[-1][1]["error"]["type"] == "cancelled_error"
    else:
        assert knock.sent[0]["status"] == 499
    again = await asyncio.to_thread(client.delete, f"/requests/{request_id}")
    assert again.status_code == 404
    assert again.json()["error"]["code"] == "request_not_found"


@pytest.mark.parametrize(
    ("accept", "wanted"),
    [
        (EVENTS, True),
        (f"{EVENTS};q=0", False),
        ("*/*", False),
        (f"application/json, {EVENTS}", True),
    ],
)
def test_events_are_asked_for_by_name(accept: str, wanted: bool) -> None:
    assert wants_events(accept) is wanted
