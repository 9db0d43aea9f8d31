"""`log.jsonl`: what a run reports, one JSON object a line, whatever ended the process.

Knows lines. Knows nothing of what they report.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

LOG_NAME = "log.jsonl"


class RunLog:
    """The log of a run's folder; opening it mends a last line that was cut off.

    A run that goes on from a checkpoint repeats the lines of the steps since.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOG_NAME
        if self.path.exists():
            self._mend()

    def append(self, row: dict[str, Any]) -> None:
        """Add a line."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")

    def sync(self) -> None:
        """Wait until all lines so far are on the disk."""
        if self.path.exists():
            with self.path.open("rb") as file:
                os.fsync(file.fileno())

    def _mend(self) -> None:
        with self.path.open("r+b") as file:
            content = file.read()
            whole, newline, last = content.rpartition(b"\n")
            if not last:
                return
            try:
                json.loads(last)
                file.write(b"\n")
            except ValueError:
                file.truncate(len(whole) + len(newline))
