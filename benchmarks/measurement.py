"""What was measured: one case, the time of each way to do it, and how that compares.

Knows arithmetic and tables; not devices, operators or files' places. A way that could not be
measured keeps its reason, so that nothing is silently left out.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

_UNITS = {"us": 1e6, "ms": 1e3, "s": 1.0}


@dataclass
class Measurement:
    """One case.

    Attributes:
        part: which part of the check it belongs to.
        case: what was run; with `part` it is the key.
        ours: the way that is judged.
        baseline: the way that the gain is counted from.
        work: of one call: bytes moved or floating-point operations, as `work_unit` says.
        work_unit: "B" or "FLOP"; empty where there is no rate.
        seconds: median time of one call, by way.
        best_seconds: the fastest round, by way.
        methods: how each way was timed.
        missing: why a way has no time, by way.
        ceilings: measured rates in `work_unit` a second, by name; the first is the one judged by.
        target: share of the first ceiling that `ours` is to reach; None judges nothing.
        unit: of times in the table.
        note: one remark.
        outcome: a verdict given outright, where there is no time to judge by.
    """

    part: str
    case: str
    ours: str = ""
    baseline: str = ""
    work: float = 0.0
    work_unit: str = ""
    seconds: dict[str, float] = field(default_factory=dict)
    best_seconds: dict[str, float] = field(default_factory=dict)
    methods: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    ceilings: dict[str, float] = field(default_factory=dict)
    target: float | None = None
    unit: str = "us"
    note: str = ""
    outcome: str = ""

    def rate(self, way: str) -> float | None:
        """Work a second of a way."""
        seconds = self.seconds.get(way)
        return self.work / seconds if seconds and self.work_unit else None

    def share(self, ceiling: str | None = None) -> float | None:
        """Rate of `ours` over a ceiling, the first by default."""
        rate, name = self.rate(self.ours), ceiling or next(iter(self.ceilings), "")
        return rate / self.ceilings[name] if rate and self.ceilings.get(name) else None

    def gain(self) -> float | None:
        """How many times as fast as the baseline `ours` is."""
        ours, baseline = self.seconds.get(self.ours), self.seconds.get(self.baseline)
        return baseline / ours if ours and baseline and self.ours != self.baseline else None

    def verdict(self) -> str:
        """What the case says about its target: "pass", "MISS", "not measured", or nothing."""
        if self.outcome:
            return self.outcome
        if self.ours and self.ours not in self.seconds:
            return "not measured"
        share = self.share()
        if self.target is None or share is None:
            return ""
        return f"{'pass' if share >= self.target else 'MISS'} (>= {self.target:.0%})"


class Ledger:
    """Measurements as they come: said aloud, and appended to a file that outlives a crash."""

    def __init__(self, path: Path | None, say: Callable[[str], None] = print) -> None:
        self._path, self._say = path, say

    def put(self, measurement: Measurement) -> None:
        """Keep one; a later one of the same part and case replaces it."""
        self._say("  ".join(cell for cell in cells(measurement) if cell))
        if self._path is not None:
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(asdict(measurement)) + "\n")


def read_ledger(path: Path) -> list[Measurement]:
    """What a `Ledger` wrote, the last of each case, in the order of first mention.

    The last line may be half a line, where its writer was stopped: it is left out.
    """
    kept: dict[tuple[str, str], Measurement] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            measurement = Measurement(**json.loads(line))
        except json.JSONDecodeError:
            continue
        kept[measurement.part, measurement.case] = measurement
    return list(kept.values())


HEADINGS = ("part", "case", "time of each way", "rate", "of ceiling", "gain", "verdict")


def cells(m: Measurement) -> tuple[str, ...]:
    """The columns of `HEADINGS` for one measurement."""
    times = [f"{way} {_number(s * _UNITS[m.unit])}" for way, s in m.seconds.items()]
    missing = [f"{way}: {reason}" for way, reason in m.missing.items()]
    timed = f"{', '.join(times)} {m.unit}" if times else ""
    shares = [f"{share:.0%} {name}" for name in m.ceilings if (share := m.share(name)) is not None]
    gain = m.gain()
    return (
        m.part,
        m.case,
        "; ".join(filter(None, (timed, *missing, m.note))),
        spell_rate(m.rate(m.ours), m.work_unit),
        ", ".join(shares),
        f"{gain:.2f}x {m.baseline}" if gain else "",
        m.verdict(),
    )


def spell_rate(rate: float | None, unit: str) -> str:
    """A rate for people."""
    if rate is None:
        return ""
    return f"{rate / 1e12:.3g} T{unit}/s"


def spell_error(error: Exception) -> str:
    """Why something could not be measured, in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def markdown(headings: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table with aligned columns: readable on a terminal too."""
    body = [[cell.replace("|", "/").replace("\n", " ") for cell in line] for line in lines]
    widths = [max(len(line[i]) for line in [list(headings), *body]) for i in range(len(headings))]
    ruled = [list(headings), ["-" * width for width in widths], *body]
    return "\n".join(
        "| " + " | ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)) + " |"
        for line in ruled
    )


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:.0f}"
