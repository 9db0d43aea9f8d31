"""The decoder: every job ends once, equal sizes go together, an error is nobody else's."""

import threading
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor

from fit_serve.engine.decoder import Decoder
from fit_serve.engine.sequence import Sequence
from support.sequences import PIXELS_PER_TOKEN, sequence_of

PATIENCE_S = 20.0
CHANNELS, PATCH = 4, 2


class FakeAutoencoder:
    """Enlarges the first channel. Waits for `may_go` before each call; fails on the value 13."""

    def __init__(self) -> None:
        self.may_go = threading.Event()
        self.is_called = threading.Event()
        self.batch_sizes: list[int] = []

    def decode(self, latents_BChw: Tensor) -> Tensor:
        self.is_called.set()
        assert self.may_go.wait(PATIENCE_S)
        self.batch_sizes.append(len(latents_BChw))
        if bool((latents_BChw == 13).any()):
            raise RuntimeError("unlucky")
        side = PIXELS_PER_TOKEN // PATCH
        large = latents_BChw[:, :1].repeat_interleave(side, 2).repeat_interleave(side, 3)
        return large.expand(-1, 3, -1, -1).to(torch.uint8)


class House:
    def __init__(
        self,
        num_workers: int = 1,
        on_decoded: Callable[..., None] | None = None,
        largest_group: int | None = None,
    ) -> None:
        self.autoencoder: Any = FakeAutoencoder()
        self.ends: list[tuple[str, numpy.ndarray | Exception]] = []
        self.decoder = Decoder(
            self.autoencoder, PATCH, num_workers, on_decoded or self.note, largest_group
        )

    def note(self, sequence: Sequence, outcome: numpy.ndarray | Exception, seconds: float) -> None:
        assert seconds >= 0
        self.ends.append((sequence.sequence_id, outcome))

    def put(self, name: str, value: float, grid: tuple[int, int] = (2, 3)) -> None:
        sequence = sequence_of(name, grid)
        self.decoder.put(
            sequence, torch.full((sequence.num_tokens, CHANNELS * PATCH**2), float(value))
        )

    def block(self) -> None:
        """Occupy the one worker, so that what is put from now on queues up."""
        self.put("first", 0, (1, 1))
        assert self.autoencoder.is_called.wait(PATIENCE_S)

    def close(self) -> dict[str, numpy.ndarray | Exception]:
        self.autoencoder.may_go.set()
        self.decoder.close(PATIENCE_S)
        assert len(dict(self.ends)) == len(self.ends), "a job ended twice"
        return dict(self.ends)


def test_pixels_are_of_the_right_latent_and_size() -> None:
    house = House()
    house.block()
    for value, grid in ((5, (2, 3)), (7, (3, 2)), (9, (2, 3))):
        house.put(str(value), value, grid)
    ends = house.close()
    for name, shape in (("5", (32, 48, 3)), ("7", (48, 32, 3)), ("9", (32, 48, 3))):
        pixels = ends[name]
        assert isinstance(pixels, numpy.ndarray)
        assert (pixels.shape, pixels.dtype) == (shape, numpy.uint8)
        assert set(pixels.flat) == {int(name)}


def test_equal_sizes_go_together_the_oldest_first() -> None:
    house = House()
    house.block()
    for name, grid in (("a", (2, 3)), ("b", (3, 2)), ("c", (2, 3)), ("d", (2, 3))):
        house.put(name, 1, grid)
    house.close()
    assert house.autoencoder.batch_sizes == [1, 3, 1]
    assert [name for name, _ in house.ends] == ["first", "a", "c", "d", "b"]


def test_a_group_is_bounded_in_pixels() -> None:
    house = House()
    house.block()
    for i in range(10):
        house.put(str(i), i, (32, 16))  # 512 x 256 pixels: eight fill 1024 x 1024
    for i in range(10, 13):
        house.put(str(i), i, (64, 64))
    house.close()
    assert house.autoencoder.batch_sizes == [1, 8, 2, 1, 1, 1]


@pytest.mark.parametrize(("largest", "sizes"), [(1, [1] * 6), (2, [1, 2, 2, 1])])
def test_a_group_is_bounded_in_pictures_if_that_is_asked(largest: int, sizes: list[int]) -> None:
    """One at a time, a picture's bits tell nothing of others."""
    house = House(largest_group=largest)
    house.block()
    for i in range(5):
        house.put(str(i), i, (2, 3))
    assert len(house.close()) == 6
    assert house.autoencoder.batch_sizes == sizes


@pytest.mark.parametrize("bad", [13.0, float("nan"), float("inf")])
def test_one_that_cannot_be_decoded_fails_alone(bad: float) -> None:
    house = House()
    house.block()
    house.put("good", 1)
    house.put("bad", bad)
    house.put("fine", 2)
    ends = house.close()
    assert isinstance(ends["bad"], RuntimeError | FloatingPointError)
    assert isinstance(ends["good"], numpy.ndarray)
    assert isinstance(ends["fine"], numpy.ndarray)


def test_closing_decodes_what_is_queued() -> None:
    house = House(num_workers=2)
    for i in range(20):
        house.put(str(i), i, (1 + i % 3, 2))
    assert len(house.close()) == 20
    assert not house.decoder.is_alive()


def test_a_broken_listener_does_not_end_the_thread(caplog: pytest.LogCaptureFixture) -> None:
    told: list[str] = []

    def broken(sequence: Sequence, outcome: object, seconds: float) -> None:
        told.append(sequence.sequence_id)
        raise RuntimeError("a bug")

    house = House(on_decoded=broken)
    house.block()
    house.put("a", 1, (1, 2))
    house.put("b", 2, (2, 1))
    assert house.decoder.is_alive()
    house.close()
    assert told == ["first", "a", "b"]
    assert "the answer of b was lost" in caplog.text


def test_closing_does_not_wait_for_a_stuck_thread_for_ever() -> None:
    house = House()
    house.block()
    house.decoder.close(timeout_s=0.01)
    assert house.decoder.is_alive()
    house.close()


def test_unequal_latents_are_told_by_their_grid_not_their_length() -> None:
    """Twelve tokens may be 3 x 4 or 2 x 6; stacking them would mix rows up."""
    house = House()
    house.block()
    house.put("a", 1, (3, 4))
    house.put("b", 2, (2, 6))
    ends = house.close()
    for name, shape in (("a", (48, 64, 3)), ("b", (32, 96, 3))):
        pixels = ends[name]
        assert isinstance(pixels, numpy.ndarray)
        assert pixels.shape == shape
