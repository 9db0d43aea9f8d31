"""Around the commands of `make train-demo`: photographs parted, and a line of figures."""

import json
import runpy
from pathlib import Path

import pytest

from support.repository import ROOT

hold_out = runpy.run_path(str(ROOT / "examples" / "hold_out.py"))["hold_out"]
what_was_measured = runpy.run_path(str(ROOT / "examples" / "what_was_measured.py"))[
    "what_was_measured"
]


def write_photographs(folder: Path, counts: dict[str, int]) -> None:
    for name, count in counts.items():
        (folder / name / "inside").mkdir(parents=True)
        for number in range(count):
            (folder / name / "inside" / f"{number}.png").write_text(f"{name} {number}")


def test_every_photograph_is_in_one_part_and_every_class_in_both(tmp_path: Path):
    write_photographs(tmp_path / "photos", {"ant": 11, "bee": 5})
    for _ in range(2):  # the second time over the first
        assert hold_out(tmp_path / "photos", tmp_path / "parts") == (13, 3)
    parts = {
        part: {path.read_text() for path in (tmp_path / "parts" / part).rglob("*.png")}
        for part in ("train", "val")
    }
    assert not parts["train"] & parts["val"]
    assert len(parts["train"] | parts["val"]) == 16
    assert sorted(path.name for path in (tmp_path / "parts" / "val").iterdir()) == ["ant", "bee"]


@pytest.mark.parametrize("counts", [{}, {"ant": 4}])
def test_too_little_is_refused_and_nothing_is_made(tmp_path: Path, counts: dict[str, int]):
    write_photographs(tmp_path / "photos", counts)
    with pytest.raises(ValueError, match="photographs: "):
        hold_out(tmp_path / "photos", tmp_path / "parts")
    assert not (tmp_path / "parts").exists()


def test_the_line_has_the_figures_of_log_and_report(tmp_path: Path):
    log, report = tmp_path / "log.jsonl", tmp_path / "report.json"
    rows = [{"step": step, "loss": 2.0 if step < 5 else 1.0} for step in range(10)]
    log.write_text("\n".join(json.dumps(row) for row in [*rows, {"validation_loss": 9.0}]))
    found = {"num_generated": 40, "generated_accuracy": 0.925, "validation_accuracy": 0.8}
    report.write_text(json.dumps(found))
    line = what_was_measured(log, report)
    for figure in ("2.000", "1.000", "9 steps", "40 pictures", "92%", "80%"):
        assert figure in line
