"""Each process writes its own slices; any number of processes reads them, and hears of failures."""

import json
import logging
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from fit_training.loop.checkpoint_files import CHECKSUMS, RUN, slices_name, write_file
from fit_training.loop.checkpoints import (
    ALONE,
    load_newest_checkpoint,
    read_checkpoint,
    save_checkpoint,
)
from fit_training.loop.slices import read_slices
from fit_training.loop.tensor_file import write_tensors
from support import sliced_states
from support.process_group import run_in_processes
from support.sliced_states import ROWS, whole_state
from support.toy_run import differences

ONE, TWO = "checkpoint-00000001", "checkpoint-00000002"
FILES = (slices_name(0), slices_name(1), slices_name(2), RUN, CHECKSUMS)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which three processes saved steps 1 and 2, and read the latter again."""
    folder = tmp_path_factory.mktemp("three")
    save = partial(sliced_states.save, folder, (1, 2))
    run_in_processes(3, save, partial(sliced_states.check_newest, folder, 2))
    return folder


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of it to do harm to."""
    return Path(shutil.copytree(saved, tmp_path / "run"))


def write_part(path: Path, tensors: dict[str, torch.Tensor], begins: dict[str, list[int]]) -> Path:
    places = {name: {"saved_offsets": begin} for name, begin in begins.items()}
    about = {"DCP_SHARDING_INFO": json.dumps(places)}
    write_file(path, lambda write: write_tensors(tensors, write, about))
    return path


def test_a_process_alone_puts_slices_together(tmp_path: Path):
    """Also where they were not cut along the first dimension, and where one has no rows."""
    a, b = torch.arange(20.0).reshape(5, 4), torch.arange(3)
    files = [
        write_part(
            tmp_path / "0", {"a": a[:, :3], "b": b, "c": torch.tensor(7)},
            {"a": [0, 0], "b": [0], "c": []},
        ),
        write_part(tmp_path / "1", {"a": a[:, 3:], "b": b[:0]}, {"a": [0, 3], "b": [3]}),
    ]  # fmt: skip
    found = read_slices(files, ALONE)
    assert found.keys() == {"a", "b", "c"}
    assert torch.equal(found["a"], a)
    assert torch.equal(found["b"], b)
    assert torch.equal(found["c"], torch.tensor(7))


def test_a_file_that_is_none_of_safetensors_is_refused(tmp_path: Path):
    (tmp_path / "0").write_bytes(b"no header at all")
    with pytest.raises(ValueError, match="is no safetensors file"):
        read_slices([tmp_path / "0"], ALONE)


@pytest.mark.slow
def test_each_process_writes_its_slices_alone_and_no_pickle(saved: Path):
    path = saved / TWO
    assert sorted(one.name for one in path.iterdir()) == sorted(FILES)
    assert json.loads((path / CHECKSUMS).read_text()).keys() == set(FILES) - {CHECKSUMS}
    held = {f"matrix_{rows}": 0 for rows in ROWS}
    for rank in range(3):
        with safe_open(path / slices_name(rank), framework="pt") as file:
            for rows in ROWS:
                name = f"weights.matrix_{rows}"
                if name in file.keys():  # noqa: SIM118
                    found = file.get_tensor(name)
                    assert len(found) <= -(-rows // 3)
                    held[f"matrix_{rows}"] += len(found)
    assert held == {f"matrix_{rows}": rows for rows in ROWS}


@pytest.mark.slow
def test_one_process_reads_whole_what_three_wrote(saved: Path):
    state = load_newest_checkpoint(saved)
    assert state is not None
    assert differences(state, whole_state(2)) == []
    assert differences(read_checkpoint(saved / ONE), whole_state(1)) == []


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-2])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", [cut, flip, Path.unlink])
def test_damage_to_any_file_is_noticed_and_the_checkpoint_before_is_used(
    folder: Path, name: str, damage: Callable[[Path], None], caplog: pytest.LogCaptureFixture
):
    damage(folder / TWO / name)
    with caplog.at_level(logging.WARNING):
        state = load_newest_checkpoint(folder)
    assert state is not None
    assert state["progress"] == [1, 0]
    assert [TWO in record.getMessage() for record in caplog.records] == [True]


@pytest.mark.slow
def test_two_processes_read_in_slices_what_others_wrote(saved: Path, folder: Path, tmp_path: Path):
    """Three processes or one; a checkpoint that is damaged is passed over by both."""
    check, none = sliced_states.check_newest, sliced_states.hear_of_damage
    (tmp_path / "one").mkdir()
    save_checkpoint(tmp_path / "one", 5, whole_state(5), keep=1)
    damaged = Path(shutil.copytree(saved / ONE, tmp_path / "all" / ONE)).parent
    flip(damaged / ONE / slices_name(2))
    flip(folder / TWO / slices_name(1))
    run_in_processes(
        2,
        partial(check, saved, 2),
        partial(check, tmp_path / "one", 5),
        partial(check, folder, 1),
        partial(none, damaged),
    )


@pytest.mark.slow
def test_what_one_process_cannot_save_is_an_error_in_all_and_keeps_the_last_good_one(
    tmp_path: Path,
):
    full = [(1, slices_name(1)), (0, slices_name(0)), (0, RUN), (0, CHECKSUMS)]
    folders = [tmp_path / str(number) for number in range(len(full) + 1)]
    for each in folders:
        each.mkdir()
    fill, refuse = sliced_states.fill_the_disk, sliced_states.refuse_what_cannot_be_saved
    run_in_processes(
        2,
        *(partial(fill, path, *place) for path, place in zip(folders, full, strict=False)),
        partial(refuse, folders[-1]),
    )
