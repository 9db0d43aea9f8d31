"""One line on a run: `python examples/what_was_measured.py LOG.JSONL REPORT.JSON`.

The loss of the first and of the last rows of the log, each a mean over a few, and what
`fit-serve evaluate` found.
"""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path

FEW = 5


def what_was_measured(log: Path, report: Path) -> str:
    """Sum a log and a report up.

    Raises:
        ValueError: the log has no loss.
    """
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    rows = [row for row in rows if "loss" in row]
    if not rows:
        raise ValueError(f"log: {log} has no loss")
    few = max(1, min(FEW, len(rows) // 2))
    first, last = (statistics.mean(r["loss"] for r in part) for part in (rows[:few], rows[-few:]))
    found = json.loads(report.read_text(encoding="utf-8"))
    return (
        f"measured: training loss {first:.3f} at first, {last:.3f} at last, after "
        f"{rows[-1]['step']} steps; of {found['num_generated']} pictures "
        f"{found['generated_accuracy']:.0%} are taken for their class, of held-out photographs "
        f"{found['validation_accuracy']:.0%}"
    )


if __name__ == "__main__":
    sys.stdout.write(what_was_measured(Path(sys.argv[1]), Path(sys.argv[2])) + "\n")
