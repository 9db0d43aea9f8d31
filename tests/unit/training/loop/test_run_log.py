"""A log whose last line was cut off is mended when it is opened; whole lines stay."""

import json
from pathlib import Path

import pytest

from fit_training.loop.run_log import LOG_NAME, RunLog

ROWS = [{"step": 1, "loss": 0.5}, {"step": 2, "loss": 0.25}]
WHOLE = "".join(json.dumps(row) + "\n" for row in ROWS)


@pytest.mark.parametrize("length", range(len(WHOLE) + 1))
def test_wherever_it_was_cut_whole_rows_stay_and_one_can_be_added(tmp_path: Path, length: int):
    (tmp_path / LOG_NAME).write_text(WHOLE[:length])
    log = RunLog(tmp_path)
    log.append({"step": 9})
    log.sync()
    rows = [json.loads(line) for line in log.path.read_text().splitlines()]
    ends = [len(json.dumps(ROWS[0])), len(WHOLE) - 1]
    assert rows == [*ROWS[: sum(length >= end for end in ends)], {"step": 9}]


def test_a_log_that_is_not_there_is_begun_with_its_first_row(tmp_path: Path):
    log = RunLog(tmp_path)
    log.sync()
    assert not log.path.exists()
    log.append(ROWS[0])
    assert json.loads(log.path.read_text()) == ROWS[0]
