"""`fit_serve.client` against a served fake engine: pictures, events, errors, retries, leaving."""

import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy
import pytest

from fit_serve.client import (
    Accepted,
    AsyncClient,
    Client,
    Completed,
    Progress,
    RequestFailed,
    ServerUnreachable,
)
from fit_serve.client.trouble import failure_of, wait_before_retry
from fit_serve.errors import EngineFailed, InvalidRequest, Overloaded
from support.fake_engine import FakeEngine, gradient
from support.http_client import build_app
from support.served_app import served

SIZE = {"height": 32, "width": 48, "seed": 7}


def wait_until(condition) -> None:
    end = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.005)


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
def url(engine: FakeEngine) -> Iterator[str]:
    with served(build_app(engine)) as address:
        yield address


def test_a_picture_in_a_line(url: str, tmp_path: Path) -> None:
    with Client(url) as client:
        picture = client.generate("sunflower", **SIZE, output_format="webp")
    assert (picture.height, picture.width, picture.seed) == (32, 48, 7)
    path = picture.save(tmp_path / "flower")
    assert path.name == "flower.webp"
    assert picture.image().size == (48, 32)
    assert path.read_bytes() == picture.data


def test_many_pictures_are_those_of_their_seeds(url: str) -> None:
    with Client(url) as client:
        pictures = client.generate_many(1, **SIZE, num_images=3)
    for index, picture in enumerate(pictures):
        assert numpy.array_equal(numpy.asarray(picture.image()), gradient(32, 48, 7 + index))


def test_events_come_in_order(url: str) -> None:
    with Client(url) as client:
        events = list(client.stream("sunflower", **SIZE))
    assert [type(event) for event in events] == [Accepted, Progress, Completed]
    assert isinstance(events[2], Completed)
    assert events[2].pictures[0].seed == 7


async def test_the_asynchronous_client_does_the_same(url: str) -> None:
    async with AsyncClient(url) as client:
        picture = await client.generate("sunflower", **SIZE)
        events = [event async for event in client.stream("sunflower", **SIZE)]
        assert not await client.cancel("gen-none")
        with pytest.raises(RequestFailed) as caught:
            await client.generate("zebra", **SIZE)
    assert numpy.array_equal(numpy.asarray(picture.image()), gradient(32, 48, 7))
    assert [type(event) for event in events] == [Accepted, Progress, Completed]
    assert caught.value.code == "unknown_class"


def test_a_refusal_says_field_and_code(url: str) -> None:
    with Client(url) as client, pytest.raises(RequestFailed) as caught:
        client.generate("zebra", **SIZE)
    assert (caught.value.status, caught.value.param) == (400, "class")
    assert caught.value.code == "unknown_class"
    with Client(url) as client, pytest.raises(RequestFailed):
        list(client.stream("zebra", **SIZE))


@pytest.mark.parametrize(
    ("refusals", "calls"), [([Overloaded("full", 1.0)], 2), ([Overloaded("full", 1.0)] * 5, 3)]
)
def test_what_passes_is_retried_and_no_more_often_than_asked(
    refusals: list[Exception], calls: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Refusing(FakeEngine):
        asked = 0

        def submit(self, sequences, on_progress=None):
            self.asked += 1
            if refusals:
                raise refusals.pop()
            return super().submit(sequences, on_progress)

    waited: list[float] = []
    clock = SimpleNamespace(sleep=waited.append)
    monkeypatch.setattr("fit_serve.client.synchronous.time", clock)
    engine = Refusing()
    with served(build_app(engine)) as url, Client(url, max_retries=2) as client:
        if len(refusals) > 2:
            with pytest.raises(RequestFailed) as caught:
                client.generate("sunflower", **SIZE)
            assert caught.value.status == 429
        else:
            client.generate("sunflower", **SIZE)
    assert engine.asked == calls
    assert waited == [1.0] * (calls - 1)


@pytest.mark.parametrize("refusal", [InvalidRequest("no"), EngineFailed("failed")])
def test_what_does_not_pass_is_not_retried(refusal: Exception) -> None:
    class Refusing(FakeEngine):
        asked = 0

        def submit(self, sequences, on_progress=None):
            self.asked += 1
            raise refusal

    engine = Refusing()
    with served(build_app(engine)) as url, Client(url) as client, pytest.raises(RequestFailed):
        client.generate("sunflower", **SIZE)
    assert engine.asked == 1


def test_leaving_a_stream_cancels_and_so_does_its_id() -> None:
    engine = FakeEngine(patient=True)
    with served(build_app(engine)) as url, Client(url) as client:
        for event in client.stream("sunflower", **SIZE):
            assert isinstance(event, Accepted)
            break
        wait_until(lambda: len(engine.submitted) == 1 and not engine.unfinished)

        told: list[Exception] = []

        def follow() -> None:
            try:
                list(client.stream("sunflower", **SIZE))
            except RequestFailed as error:
                told.append(error)

        following = threading.Thread(target=follow)
        following.start()
        wait_until(lambda: len(engine.submitted) == 2)
        request_id = engine.submitted[1].sequence_id.rpartition("-")[0]
        wait_until(lambda: client.cancel(request_id))
        following.join(5)
        assert not engine.unfinished
        assert [getattr(error, "type", None) for error in told] == ["cancelled_error"]
        assert not client.cancel(request_id)


def test_nobody_at_the_address_is_said() -> None:
    nobody = pytest.raises(ServerUnreachable, match=r"127\.0\.0\.1:9")
    with Client("http://127.0.0.1:9", max_retries=0) as client, nobody:
        client.generate("sunflower", **SIZE)


def test_a_proxys_page_is_a_failure_too() -> None:
    failure = failure_of(None, 502, {})
    assert (failure.status, failure.type) == (502, "")
    assert "502" in str(failure)
    assert wait_before_retry(failure, 0) is None
    refused = failure_of({"error": {"message": "full"}}, 429, {"retry-after": "900"})
    assert wait_before_retry(refused, 0) == 60.0
    assert wait_before_retry(failure_of({}, 503, {}), 2) == 2.0


def test_the_client_brings_no_torch_and_no_web_framework() -> None:
    code = (
        "import sys, fit_serve.client as c; "
        "print(sorted({'torch', 'fastapi', 'pydantic', 'PIL'} & set(sys.modules)))"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
