"""`python -m fit_kernels.aot`: compile every kernel, say how it goes, write the table."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import triton

from fit_kernels.aot import report
from fit_kernels.aot.coverage import covered
from fit_kernels.aot.targets import TARGETS
from fit_kernels.aot.workers import Result, compile_all
from fit_kernels.launch import interpreting

_SECONDS_BETWEEN_LINES = 10.0


def main() -> int:
    """Return the exit status: 1 if anything does not compile, spills or does not fit."""
    options = _parse()
    if interpreting():
        print("[aot] TRITON_INTERPRET=1 is set; an interpreted kernel cannot be compiled")
        return 2
    needed = covered()
    targets = {arch: TARGETS[arch] for arch in options.targets}
    total = len(needed) * len(targets)
    names = ", ".join(f"sm_{arch}" for arch in targets)
    print(f"[aot] Triton {triton.__version__}: {len(needed)} configurations for {names} ...")
    rows: list[report.Row] = []
    failed = 0
    for result in _with_progress(compile_all([*needed], [*targets.values()], options.jobs), total):
        users = needed[result.configuration]
        if result.measurement is None:
            failed += 1
            kernel, arch = result.configuration.kernel, result.target.arch
            print(f"[aot] FAILED {kernel} ({', '.join(users)}) sm_{arch}: {result.error}")
            continue
        rows.append(report.row_of(result, users))
        for problem in report.problems(rows[-1]):
            failed += 1
            print(f"[aot] FAILED {report.name_of(rows[-1])}: {problem}")
    if options.json is not None:
        report.write_json(options.json, triton.__version__, rows)
        report.write_markdown(options.json.with_suffix(".md"), triton.__version__, rows)
        print(f"[aot] written: {options.json}, {options.json.with_suffix('.md')}")
    print(report.summary(rows, targets))
    return 1 if failed else 0


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m fit_kernels.aot", description=__doc__)
    parser.add_argument("--json", type=Path, help="write the table here, and as .md beside it")
    parser.add_argument(
        "--targets",
        type=lambda text: [int(arch) for arch in text.split(",")],
        default=[*TARGETS],
        help="compute capabilities times ten (default: 80,90,100)",
    )
    parser.add_argument("--jobs", type=int, default=2, help="worker processes (default: 2)")
    options = parser.parse_args()
    if unknown := sorted(set(options.targets) - set(TARGETS)):
        parser.error(f"unknown targets {unknown}; known: {sorted(TARGETS)}")
    return options


def _with_progress(results: Iterator[Result], total: int) -> Iterator[Result]:
    """Say now and then how far it is."""
    start = said = time.monotonic()
    for done, result in enumerate(results, 1):
        yield result
        now = time.monotonic()
        if done == total or now - said > _SECONDS_BETWEEN_LINES:
            print(f"[aot] {done}/{total} compiled, {now - start:.0f} s", flush=True)
            said = now


if __name__ == "__main__":
    sys.exit(main())
