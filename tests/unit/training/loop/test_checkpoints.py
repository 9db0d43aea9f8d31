"""A checkpoint is there whole or not at all; a damaged one is noticed; only those needed stay."""

import errno
import json
import logging
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from fit_training.loop.checkpoint_files import CHECKSUMS, RUN, STATE
from fit_training.loop.checkpoints import (
    load_newest_checkpoint,
    read_checkpoint,
    remove_unfinished,
    save_checkpoint,
)

FILES = (STATE, RUN, CHECKSUMS)
PLACES = (*FILES, "folder")


def state_of(step: int) -> dict[str, Any]:
    return {"progress": [step, 0], "network": {"w": torch.full((3,), float(step))}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def steps(folder: Path) -> list[int]:
    return [int(name.removeprefix("checkpoint-")) for name in names(folder)]


def newest_step(folder: Path) -> int:
    found = load_newest_checkpoint(folder)
    assert found is not None
    return found["progress"][0]


def test_the_newest_comes_back_as_it_was_saved(tmp_path: Path):
    for step in (9, 10, 2_000, 1_000_000_000):
        save_checkpoint(tmp_path, step, state_of(step), keep=5)
        found = load_newest_checkpoint(tmp_path)
        assert found is not None
        assert found["progress"] == [step, 0]
        assert torch.equal(found["network"]["w"], torch.full((3,), float(step)))


def test_it_is_a_folder_of_plain_formats(tmp_path: Path):
    path = save_checkpoint(tmp_path, 400, state_of(400), keep=1, score=0.25)
    assert path == tmp_path / "checkpoint-00000400"
    assert names(path) == sorted(FILES)
    with safe_open(path / STATE, "pt") as file:
        assert list(file.keys()) == ["network.w"]
    run = json.loads((path / RUN).read_text())
    assert (run["step"], run["score"], run["state"]["progress"]) == (400, 0.25, [400, 0])
    assert json.loads((path / CHECKSUMS).read_text()).keys() == {STATE, RUN}


def test_a_folder_without_checkpoints_has_none(tmp_path: Path):
    (tmp_path / "log.jsonl").touch()
    (tmp_path / ".checkpoint-00000001.unfinished").mkdir()
    (tmp_path / "checkpoint-final").mkdir()
    assert load_newest_checkpoint(tmp_path) is None


def test_what_was_interrupted_is_removed_and_nothing_else(tmp_path: Path):
    path = save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    (tmp_path / "log.jsonl").touch()
    for end in ("unfinished", "removed"):
        shutil.copytree(path, tmp_path / f".checkpoint-00000002.{end}")
    remove_unfinished(tmp_path)
    assert names(tmp_path) == ["checkpoint-00000001", "log.jsonl"]


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_stay(tmp_path: Path, keep: int):
    for step in range(8, 13):
        assert save_checkpoint(tmp_path, step, state_of(step), keep).is_dir()
        assert steps(tmp_path) == list(range(8, step + 1))[-keep:]


def test_the_best_stays_too(tmp_path: Path):
    scores = (0.5, 0.3, float("nan"), 0.4, None, 0.2, 0.3)
    expected = ([1], [2], [2, 3], [2, 4], [2, 5], [6], [6, 7])
    for step, (score, kept) in enumerate(zip(scores, expected, strict=True), start=1):
        save_checkpoint(tmp_path, step, state_of(step), keep=1, score=score)
        assert steps(tmp_path) == kept


def test_one_of_the_same_step_is_replaced(tmp_path: Path):
    save_checkpoint(tmp_path, 1, state_of(5), keep=1)
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    assert names(tmp_path) == ["checkpoint-00000001"]
    assert newest_step(tmp_path) == 1


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flip, empty, Path.unlink])
def test_a_damaged_one_is_named_and_the_one_before_is_used(
    tmp_path: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    for step in (1, 2, 3):
        path = save_checkpoint(tmp_path, step, state_of(step), keep=3)
    if (damage, name) == (cut, CHECKSUMS):
        cut(path / name)  # the last byte ends the line only
    damage(path / name)
    with pytest.raises(ValueError, match="checkpoint-00000003"):
        read_checkpoint(path)
    with caplog.at_level(logging.WARNING):
        assert newest_step(tmp_path) == 2
    (record,) = caplog.records
    assert "checkpoint-00000003" in record.getMessage()


def test_without_a_good_one_nothing_is_started_anew(tmp_path: Path):
    for step in (1, 2):
        flip(save_checkpoint(tmp_path, step, state_of(step), keep=2) / STATE)
    with pytest.raises(ValueError, match="damaged: checkpoint-00000001, checkpoint-00000002"):
        load_newest_checkpoint(tmp_path)


def test_a_damaged_one_does_not_take_the_place_of_a_good_one(tmp_path: Path):
    for step in (1, 2, 3):
        save_checkpoint(tmp_path, step, state_of(step), keep=3)
    empty(tmp_path / "checkpoint-00000003" / STATE)
    save_checkpoint(tmp_path, 2, state_of(2), keep=1)  # gone on from 1; 3 is still ahead
    assert (steps(tmp_path), newest_step(tmp_path)) == ([2, 3], 2)
    save_checkpoint(tmp_path, 4, state_of(4), keep=2)
    assert steps(tmp_path) == [2, 4]


def fail_at(place: str, real: Callable[..., Any]) -> Callable[..., Any]:
    """A system call that finds the disk full when it comes to `place` of checkpoint 2."""

    def full(target: Any, *rest: Any, **named: Any) -> Any:
        path = os.readlink(f"/proc/self/fd/{target}") if isinstance(target, int) else str(target)
        is_folder = path.endswith(".unfinished")
        if ".unfinished" in path and (path.endswith(place) or (place == "folder" and is_folder)):
            raise OSError(errno.ENOSPC, "No space left on device")
        return real(target, *rest, **named)

    return full


@pytest.mark.parametrize(
    ("call", "place"),
    [
        *(("os.fsync", place) for place in PLACES),
        *(("pathlib.Path.open", place) for place in FILES),
        ("pathlib.Path.mkdir", "folder"),
        ("os.rename", "folder"),
    ],
)
def test_a_full_disk_keeps_the_last_good_one(
    tmp_path: Path, call: str, place: str, monkeypatch: pytest.MonkeyPatch
):
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    owner, _, name = call.rpartition(".")
    real = getattr(os if owner == "os" else Path, name)
    with monkeypatch.context() as patched:
        patched.setattr(call, fail_at(place, real))
        with pytest.raises(OSError, match="checkpoint-00000001 is kept") as raised:
            save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert raised.value.errno == errno.ENOSPC
    assert str(tmp_path) in str(raised.value)
    assert "No space left on device" in str(raised.value)
    assert names(tmp_path) == ["checkpoint-00000001"]
    assert newest_step(tmp_path) == 1
    save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert names(tmp_path) == ["checkpoint-00000002"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("name", FILES)
def test_a_disk_that_fills_while_writing_keeps_the_last_good_one(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
):
    """The kernel's own error, in the middle of a file."""
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    real = Path.open

    def on_full_disk(path: Path, mode: str = "r", *rest: Any, **named: Any) -> Any:
        full = path.name == name and "w" in mode  # to read from /dev/full never ends
        return real(Path("/dev/full") if full else path, mode, *rest, **named)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "open", on_full_disk)
        with pytest.raises(OSError, match="No space left on device"):
            save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert names(tmp_path) == ["checkpoint-00000001"]


def test_a_state_that_cannot_be_saved_leaves_nothing(tmp_path: Path):
    with pytest.raises(ValueError, match="config is a PosixPath"):
        save_checkpoint(tmp_path, 1, {"config": tmp_path}, keep=1)
    with pytest.raises(ValueError, match=r"tensor w is of torch\.complex128"):
        save_checkpoint(tmp_path, 1, {"w": torch.zeros(1, dtype=torch.complex128)}, keep=1)
    assert names(tmp_path) == []


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_fsync(handle: int) -> None:
        events.append(Path(os.readlink(f"/proc/self/fd/{handle}")).name)
        fsync(handle)

    def record_rename(source: Path, target: Path) -> None:
        events.append(f"rename {source.name}")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", record_fsync)
    monkeypatch.setattr(os, "rename", record_rename)
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    hidden = ".checkpoint-00000001.unfinished"
    assert events == [STATE, RUN, CHECKSUMS, hidden, f"rename {hidden}", tmp_path.name]
