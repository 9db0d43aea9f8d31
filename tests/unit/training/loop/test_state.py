"""A checkpoint is there whole or not at all, and only the newest stay."""

import os
from pathlib import Path

import pytest
import torch

from fit_training.loop.state import load_newest_checkpoint, save_checkpoint


def state_of(step: int) -> dict[str, object]:
    return {"progress": [step, 0], "network": {"w": torch.full((3,), float(step))}}


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_comes_back_as_it_was_saved(tmp_path: Path):
    for step in (9, 10, 2_000):
        save_checkpoint(tmp_path, step, state_of(step), keep=5)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None
    assert found["progress"] == [2_000, 0]
    assert torch.equal(found["network"]["w"], torch.full((3,), 2_000.0))


def test_a_folder_without_checkpoints_has_none(tmp_path: Path):
    (tmp_path / "log.jsonl").touch()
    (tmp_path / ".checkpoint-00000001.pt.tmp").write_bytes(b"half")
    assert load_newest_checkpoint(tmp_path) is None


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_newest_stay(tmp_path: Path, keep: int):
    (tmp_path / "log.jsonl").touch()
    for step in range(8, 13):
        path = save_checkpoint(tmp_path, step, state_of(step), keep)
        assert path.is_file()
    kept = [f"checkpoint-{step:08d}.pt" for step in range(13 - keep, 13)]
    assert names(tmp_path) == [*kept, "log.jsonl"]


@pytest.mark.parametrize("stage", ["torch.save", "os.fsync", "os.replace"])
def test_a_failed_save_loses_nothing(tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch):
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)

    def full(*_: object) -> None:
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(f"fit_training.loop.state.{stage}", full)
        with pytest.raises(OSError, match="no space left"):
            save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    found = load_newest_checkpoint(tmp_path)
    assert found is not None
    assert found["progress"] == [1, 0]
    # and the next save goes through, over whatever was left behind
    save_checkpoint(tmp_path, 2, state_of(2), keep=1)
    assert names(tmp_path) == ["checkpoint-00000002.pt"]


def test_it_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    events: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr("os.fsync", lambda fd: (events.append("fsync"), fsync(fd))[1])
    monkeypatch.setattr("os.replace", lambda a, b: (events.append("rename"), replace(a, b))[1])
    save_checkpoint(tmp_path, 1, state_of(1), keep=1)
    assert events == ["fsync", "rename"]
