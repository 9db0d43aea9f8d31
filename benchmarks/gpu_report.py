"""The page and the data file of one GPU check: facts, verdicts, one table, what broke."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from pathlib import Path

from measurement import HEADINGS, Measurement, cells, markdown


@dataclass(frozen=True)
class Report:
    """What a check found.

    Attributes:
        facts: device, versions, commit.
        measurements: in the order of the table.
        broken: part -> what it said at the end.
        serving: a file with the table of the serving benchmark, if there is one.
    """

    facts: dict[str, str]
    measurements: list[Measurement]
    broken: dict[str, str]
    serving: Path

    def verdicts(self) -> str:
        """One line for each kind of verdict, with how many and which."""
        kinds: dict[str, list[str]] = {}
        for m in self.measurements:
            if verdict := m.verdict():
                kinds.setdefault(verdict.split(":")[0], []).append(f"{m.part}, {m.case}")
        lines = []
        for kind, names in kinds.items():
            some = "; ".join(names[:12]) + (f"; and {len(names) - 12} more" if names[12:] else "")
            lines.append(f"- {kind}: {len(names)} ({some})")
        return "\n".join(lines)

    def text(self) -> str:
        """The whole page, Markdown that is readable on a terminal."""
        facts = "\n".join(f"- {name}: {value}" for name, value in self.facts.items())
        table = markdown(HEADINGS, [cells(m) for m in self.measurements])
        pieces = ["# GPU check", facts, "## Verdicts", self.verdicts(), "## Table", _LEGEND, table]
        if self.serving.exists():
            serving = self.serving.read_text(encoding="utf-8")
            pieces += ["## Serving", f"```text\n{serving}\n```"]
        for part, said in self.broken.items():
            pieces += [f"## What broke: {part}", f"```text\n{said}\n```"]
        return "\n\n".join(pieces)

    def data(self) -> dict[str, object]:
        """Everything, for machines."""
        rows = [{**asdict(m), "verdict": m.verdict()} for m in self.measurements]
        return {"facts": self.facts, "measurements": rows, "broken": self.broken}


_LEGEND = """Times are medians. Rate, shares of ceilings, gain and verdict are of the way judged:
`fused`, or the fastest way with kernels for a network. On a GPU, kernels and attention are timed in
replayed graphs over rotating buffers, networks as they are called. "Of copy" and "MFU" are shares
of the copy and of the bf16 product measured in this run; "of one pass" is of PyTorch's own
one-tensor kernel over as many bytes, "of own products" of the network's matrix products alone."""


def write_report(report: Report, folder: Path) -> list[Path]:
    """Write `gpu-check-<device>.md` and `.json`, and return their paths."""
    name = report.facts["device"].split(",")[0]
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    page, data = (folder / f"gpu-check-{slug}{suffix}" for suffix in (".md", ".json"))
    page.write_text(report.text() + "\n", encoding="utf-8")
    data.write_text(json.dumps(report.data(), indent=1) + "\n", encoding="utf-8")
    return [page, data]
