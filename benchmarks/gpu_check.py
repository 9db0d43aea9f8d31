"""Everything that only a GPU can prove, in ten minutes and one table: `make gpu-check`.

Correctness first (`pytest -m gpu`), then what the device can do, then kernels, attention and whole
networks against that. Every part is a process of its own with a time limit: one that crashes or
hangs keeps the rows it wrote, and the others go on. When the time is short the last parts are left
out, and the table says so. `--toy` runs all of it on the CPU in Triton's interpreter, at sizes at
which only the code is proved; its results go to a temporary folder.

Exit code 1: a test failed, a part broke, or what is judged could not be run. A missed target is a
verdict in the table and no failure.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gpu_report import Report, write_report
from limited_process import environment_of, run_limited, spell_code, tail
from measurement import Ledger, Measurement, read_ledger
from pytest_outcomes import read_outcomes

BENCHMARKS = Path(__file__).resolve().parent
ROOT = BENCHMARKS.parent
RESULTS = BENCHMARKS / "results"
LIMIT_S = 600.0
_TOY_LIMIT_S = 180.0
_REPORT_S = 10.0  # kept back for writing the table
_GRACE_S = 12.0  # between a part's own deadline and its end by force
_FACTS_S = 60.0
_TEST_PROCESSES = 6


@dataclass(frozen=True)
class Part:
    """One process of the check.

    Attributes:
        name: for the table.
        script: of this folder, which keeps its own deadline and its own rows; empty for others.
        arguments: of the script.
        seconds: its share of the time; what earlier parts leave over is added.
        least: with less than that left it is not started.
        toy: whether the toy run has it.
    """

    name: str
    script: str
    arguments: tuple[str, ...]
    seconds: float
    least: float
    toy: bool = True


# In order of importance: what the time does not allow is left out from the end.
PARTS = (
    Part("tests", "", (), 150, 20),
    Part("ceilings", "ceilings.py", (), 20, 10),
    Part("kernels", "bench_kernels.py", (), 100, 20),
    Part("network XL", "bench_network.py", ("--model", "FiTv2-XL/2"), 75, 25),
    Part("graphs", "bench_graphs.py", (), 45, 25),
    Part("attention", "bench_attention.py", ("--device", "cuda"), 60, 20),
    Part("serving", "", (), 100, 60),
    Part("network 3B", "bench_network.py", ("--model", "FiTv2-3B/2"), 40, 30, toy=False),
)
_RUNGS = "serial,equal-shape-step,packed,packed+deadline,packed+graphs,packed+cache"


class Check:
    """Runs the parts one after the other against one deadline."""

    def __init__(self, toy: bool, limit_s: float, folder: Path) -> None:
        self.toy, self.folder = toy, folder
        self.deadline = time.monotonic() + limit_s - _REPORT_S
        self.rows, self.ceilings = folder / "rows.jsonl", folder / "ceilings.json"
        self.broken: dict[str, str] = {}
        self._ledger = Ledger(self.rows, lambda text: None)
        self._environment = environment_of(ROOT, toy)

    def facts(self) -> dict[str, str]:
        """Of the device; asked in another process, for this one must not hold it."""
        log = self.folder / "facts.log"
        command = [sys.executable, str(BENCHMARKS / "device_facts.py")]
        if run_limited(command, ROOT, self._environment, log, _FACTS_S) != 0:
            return {"device": "unknown", "reason": tail(log, 1)}
        return json.loads(tail(log, 1))

    def run(self) -> None:
        """Every part, or the reason why not."""
        parts = [part for part in PARTS if part.toy or not self.toy]
        for number, part in enumerate(parts):
            later = sum(p.seconds for p in parts[number + 1 :])
            left = self.deadline - time.monotonic()
            if left < part.least:
                self._leave_out(part, f"{left:.0f} s were left, it needs {part.least:.0f}")
            elif part.script and part.name != "ceilings" and not self.ceilings.exists():
                self._leave_out(part, "there are no ceilings to judge it by")
            else:
                self._run_part(part, min(left, max(part.seconds, left - later)))

    def _run_part(self, part: Part, limit: float) -> None:
        began = time.monotonic()
        log = self.folder / f"{part.name.replace(' ', '-')}.log"
        environment = self._environment
        if part.name == "serving" and self.toy:
            # A whole picture in the interpreter would take hours.
            environment = environment | {"TRITON_INTERPRET": "0"}
        code = run_limited(self._command(part, limit), ROOT, environment, log, limit)
        took = time.monotonic() - began
        _say(f"{part.name}: {took:.0f} s{'' if code == 0 else f', {spell_code(code)}'}")
        if part.name == "tests":
            self._keep_tests(code, log)
        elif part.name == "serving":
            self._keep_serving(code, log, took)
        elif code != 0:
            how = f"{spell_code(code)} after {took:.0f} s"
            self._ledger.put(Measurement(part.name, "(the rest of it)", outcome=f"BROKE: {how}"))
            self.broken[part.name] = f"{how}\n{tail(log)}"

    def _command(self, part: Part, limit: float) -> list[str]:
        if part.name == "tests":
            return [sys.executable, "-m", "pytest", *self._pytest_options()]
        if part.name == "serving":
            command = [sys.executable, "-m", "fit_serve", "bench", "ladder"]
            if self.toy:
                return [*command, "--device", "cpu", "--num-requests", "1", "--policies", "packed"]
            command += ["--model", "random:FiTv2-XL/2", "--traffic", "c-fit", "--device", "cuda"]
            return [*command, "--num-requests", "24", "--policies", _RUNGS]
        command = [sys.executable, str(BENCHMARKS / part.script), "--rows", str(self.rows)]
        if part.name != "ceilings":
            own_deadline = max(limit - _GRACE_S, limit / 2)
            command += ["--seconds", f"{own_deadline:.0f}", "--ceilings", str(self.ceilings)]
        return [*command, *part.arguments, *(["--toy"] if self.toy else [])]

    def _pytest_options(self) -> list[str]:
        """Compiling is most of the work: several processes, where pytest-xdist is there."""
        # The project's own options ask for plug-ins that need not be installed here.
        options = ["-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default"]
        options += ["-q", "-p", "no:cacheprovider", "--continue-on-collection-errors"]
        if not self.toy and importlib.util.find_spec("xdist"):
            options += ["-n", str(_TEST_PROCESSES)]
        junit = f"--junitxml={self.folder / 'tests.xml'}"
        return ["-m", "gpu", *options, junit, str(ROOT / "tests" / "gpu")]

    def _keep_tests(self, code: int | None, log: Path) -> None:
        row, failed = read_outcomes(self.folder / "tests.xml", code, log)
        self._ledger.put(row)
        if failed:
            self.broken["tests"] = f"{row.outcome}\n{tail(log)}"

    def _keep_serving(self, code: int | None, log: Path, took: float) -> None:
        """The engine's own benchmark, as it printed it; nobody is judged by it here."""
        outcome, said = "ran", tail(log, 40)
        if code != 0:
            outcome, said = f"not measured: {spell_code(code)}, {tail(log, 1)[:90]}", tail(log, 5)
        note = f"fit_serve bench ladder, {took:.0f} s; what it printed is below"
        self._ledger.put(Measurement("serving", "ladder", note=note, outcome=outcome))
        (self.folder / "serving.txt").write_text(said, encoding="utf-8")

    def _leave_out(self, part: Part, why: str) -> None:
        _say(f"{part.name}: left out, {why}")
        self._ledger.put(Measurement(part.name, "(all of it)", outcome=f"left out: {why}"))


def unrun(measurements: list[Measurement]) -> dict[str, str]:
    """What is ours and raised an error where it was to be timed, by part and case."""
    found = {}
    for m in measurements:
        reason = m.missing.get(m.ours, "")
        if reason and reason != "out of time":
            found[f"{m.part}, {m.case}"] = f"{m.ours}: {reason}"
    return found


def _say(text: str) -> None:
    print(f"[gpu-check] {text}", flush=True)


def main() -> int:
    """Run, write and print; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--toy", action="store_true", help="on the CPU, in Triton's interpreter")
    parser.add_argument("--seconds", type=float, help=f"for all of it; {LIMIT_S:.0f} if left out")
    arguments = parser.parse_args()
    limit = arguments.seconds or (_TOY_LIMIT_S if arguments.toy else LIMIT_S)
    folder = Path(tempfile.mkdtemp(prefix="gpu-check-"))
    began = time.monotonic()
    check = Check(arguments.toy, limit, folder)
    facts = check.facts()
    _say(f"{facts['device']}; logs in {folder}")
    check.run()
    facts["seconds"] = f"{time.monotonic() - began:.0f} of {limit:.0f}"
    if arguments.toy:
        facts["note"] = (
            "a toy run, in Triton's interpreter and without torch.compile: its times mean nothing"
        )
    measurements = read_ledger(check.rows)
    broken = check.broken | unrun(measurements)
    report = Report(facts, measurements, broken, folder / "serving.txt")
    files = write_report(report, folder if arguments.toy else RESULTS)
    print(report.text())
    _say(f"written: {', '.join(str(file) for file in files)}")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
