"""What pytest found, as one row of the check."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

from measurement import Measurement

_OURS = ("fit_", "support", "benchmarks", "tests")
_MISSING = re.compile(r"ModuleNotFoundError: No module named '([\w.]+)'")
_RAN = (0, 1, 2, 5)  # passed, failed, interrupted by an error of collection, nothing collected


def read_outcomes(xml: Path, code: int | None, log: Path) -> tuple[Measurement, bool]:
    """The row of the tests, and whether anything failed.

    A test file that needs a package this machine does not have counts as skipped.

    Args:
        xml: pytest's JUnit file; absent where pytest did not get that far.
        code: its exit code; None where its time was up.
        log: what it printed.
    """
    row = Measurement("tests", "pytest -m gpu")
    if not xml.exists():
        said = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
        if re.search("No module named '?pytest", said):
            row.outcome = "skipped: pytest is not installed, so nothing was checked"
            return row, False
        how = "stopped at its limit" if code is None else f"exit code {code}"
        row.outcome = f"FAILED: {how}, without a result"
        return row, True
    counts: Counter[str] = Counter()
    failed: list[str] = []
    reasons: Counter[str] = Counter()
    for case in ElementTree.parse(xml).iter("testcase"):
        outcome, reason = _outcome(case)
        counts[outcome] += 1
        if outcome == "failed":
            failed.append(case.get("name", "?"))
        elif outcome == "skipped":
            reasons[reason] += 1
    spelled = ", ".join(f"{count} {kind}" for kind, count in sorted(counts.items()))
    notes = [f"{count} skipped: {reason}" for reason, count in reasons.items()]
    row.note = "; ".join([*(f"failed: {name}" for name in failed[:8]), *notes])
    if failed or code not in _RAN:
        row.outcome = f"FAILED: {spelled or f'exit code {code}'}"
        return row, True
    ran = "pass" if counts["passed"] else "nothing ran"
    row.outcome = f"{ran}: {spelled or 'no tests'}"
    return row, False


def _outcome(case: ElementTree.Element) -> tuple[str, str]:
    """passed, failed or skipped, and why."""
    if (skipped := case.find("skipped")) is not None:
        return "skipped", skipped.get("message", "no reason")
    if case.find("failure") is not None:
        return "failed", ""
    if (error := case.find("error")) is None:
        return "passed", ""
    missing = _MISSING.findall(error.text or "")
    if missing and not missing[-1].startswith(_OURS):
        return "skipped", f"{case.get('name', '?')} needs {missing[-1]}, which is not installed"
    return "failed", ""
