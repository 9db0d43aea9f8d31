"""Prompts are read beside the loop, each once, and every sequence put in comes out once."""

import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_serve.engine.caption_reader import CaptionReader
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import Cancelled, EngineFailed, ServeError
from support.sequences import planned, request_of

PATIENCE_S = 30.0
CHANNELS = 4


class SlowEncoder:
    """Reads when it is let; counts what it reads, and in which thread."""

    def __init__(self) -> None:
        self.reads: Counter[str] = Counter()
        self.threads: set[str] = set()
        self.may_read, self.is_reading = threading.Event(), threading.Event()
        self.may_read.set()

    def encode(self, prompt: str) -> Tensor:
        self.is_reading.set()
        assert self.may_read.wait(PATIENCE_S)
        self.reads[prompt] += 1
        self.threads.add(threading.current_thread().name)
        if prompt == "bad":
            raise RuntimeError("out of words")
        return torch.full((1 + len(prompt), CHANNELS), float(len(prompt)))


class Harness:
    def __init__(self, max_bytes: int) -> None:
        self.encoder = SlowEncoder()
        self.read: list[Sequence] = []
        self.failed: dict[Sequence, ServeError] = {}
        self.refuses = False
        self._changed = threading.Condition()
        encoder: Any = self.encoder
        self.reader = CaptionReader(encoder, max_bytes, self.on_read, self.on_failed)

    def on_read(self, sequences: Any) -> None:
        if self.refuses:
            raise EngineFailed("the engine has stopped")
        with self._changed:
            self.read.extend(sequences)
            self._changed.notify_all()

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        with self._changed:
            assert sequence not in self.failed
            self.failed[sequence] = error
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        with self._changed:
            done = lambda: len(self.read) + len(self.failed) >= count  # noqa: E731
            assert self._changed.wait_for(done, PATIENCE_S)


@contextmanager
def harness(max_bytes: int = 10_000) -> Iterator[Harness]:
    made = Harness(max_bytes)
    try:
        yield made
    finally:
        made.encoder.may_read.set()
        made.reader.close(PATIENCE_S)


def asking(prompt: str, negative: str = "", scale: float = 2.0) -> Sequence:
    return planned(request_of(prompt=prompt, negative_prompt=negative, scale=scale))


def test_both_branches_have_their_captions_and_one_branch_needs_one():
    with harness() as h:
        both, one = asking("abc", "no"), asking("abc", "never", scale=1.0)
        h.reader.put([both, one])
        h.wait_for(2)
        assert [c.prompt for c in both.captions] == ["abc", "no"]
        assert [c.prompt for c in one.captions] == ["abc"]
        assert one.captions[0] is both.captions[0]
        assert h.encoder.reads == {"abc": 1, "no": 1}
        assert h.encoder.threads == {"captions"}


def test_a_prompt_asked_for_by_many_at_once_is_read_once():
    with harness(max_bytes=1) as h:
        h.encoder.may_read.clear()
        many = [asking("abc") for _ in range(5)]
        for sequence in many:
            h.reader.put([sequence])
        assert h.encoder.is_reading.wait(PATIENCE_S)
        assert h.read == []
        h.encoder.may_read.set()
        h.wait_for(5)
        assert h.encoder.reads == {"abc": 1, "": 1}
        assert len({s.captions for s in many}) == 1


def test_who_asks_for_what_is_known_waits_for_nobody():
    with harness() as h:
        h.reader.put([asking("abc")])
        h.wait_for(1)
        h.encoder.may_read.clear()
        h.encoder.is_reading.clear()
        slow, quick = asking("slow"), asking("abc")
        h.reader.put([slow])
        assert h.encoder.is_reading.wait(PATIENCE_S)
        h.reader.put([quick])
        assert h.read[-1] is quick
        assert slow not in h.read


def test_captions_go_when_they_are_too_many_and_nobody_holds_them():
    with harness(max_bytes=3 * 6 * CHANNELS * 4) as h:
        held = asking("held1", scale=1.0)
        h.reader.put([held])
        for i in range(5):
            h.reader.put([asking(f"same{i}", scale=1.0)])
        h.wait_for(6)
        h.read.clear()
        assert h.reader.num_bytes <= 3 * 6 * CHANNELS * 4
        again, gone = asking("held1", scale=1.0), asking("same0", scale=1.0)
        h.reader.put([again])
        h.reader.put([gone])
        h.wait_for(2)
        assert h.encoder.reads["held1"] == 1
        assert h.encoder.reads["same0"] == 2
        assert again.captions == held.captions


def test_numbers_of_captions_are_never_used_again():
    with harness(max_bytes=1) as h:
        numbers: list[int] = []
        for count in range(1, 7):
            sequence = asking("ab" * count, scale=1.0)
            h.reader.put([sequence])
            h.wait_for(count)
            numbers.append(sequence.captions[0].caption_id)
        assert numbers == sorted(set(numbers))


def test_an_error_ends_its_own_sequence_only():
    with harness() as h:
        bad, good = asking("bad"), asking("good")
        h.reader.put([bad, good])
        h.wait_for(2)
        assert h.read == [good]
        assert isinstance(h.failed[bad], EngineFailed)
        assert h.reader.is_alive()


def test_who_has_left_is_handed_on_unread_for_the_engine_to_end():
    with harness() as h:
        left = asking("abc")
        left.is_cancelled = True
        h.reader.put([left])
        h.wait_for(1)
        assert h.read == [left]
        assert not h.encoder.reads


def test_closing_ends_what_waits_and_what_the_engine_refuses():
    with harness() as h:
        h.encoder.may_read.clear()
        reading, waiting = asking("abc"), asking("def")
        h.reader.put([reading])
        assert h.encoder.is_reading.wait(PATIENCE_S)
        h.reader.put([waiting])
        h.refuses = True
        closing = threading.Thread(target=h.reader.close, args=(PATIENCE_S,))
        closing.start()
        h.wait_for(1)
        h.encoder.may_read.set()
        closing.join(PATIENCE_S)
        assert isinstance(h.failed[waiting], Cancelled)
        assert h.failed[reading].message == "the engine has stopped"
        assert not h.reader.is_alive()
        with pytest.raises(EngineFailed):
            h.reader.put([asking("late")])
