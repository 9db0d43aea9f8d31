"""A process with a log, a limit in seconds, and the paths and switches the benchmarks need."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

_SOURCES = ("kernels", "models", "training", "server", "tests")


def environment_of(root: Path, toy: bool) -> dict[str, str]:
    """This process's environment with the packages on the path, installed or not."""
    environment = dict(os.environ)
    paths = [str(root / folder) for folder in _SOURCES]
    paths += filter(None, [environment.get("PYTHONPATH")])
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    if toy:
        # The interpreter in place of the GPU; torch.compile is called but compiles nothing.
        environment |= {"TRITON_INTERPRET": "1", "TORCHDYNAMO_DISABLE": "1"}
        environment |= {"CUDA_VISIBLE_DEVICES": ""}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    return environment


def run_limited(
    command: Sequence[str], folder: Path, environment: Mapping[str, str], log: Path, limit: float
) -> int | None:
    """Exit code, or None where the limit ended it; its compilers and children end with it."""
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=dict(environment),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=limit)
        except subprocess.TimeoutExpired:
            return None
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def spell_code(code: int | None) -> str:
    """What `run_limited` returned, in words."""
    return "stopped at its limit" if code is None else f"exit code {code}"


def tail(log: Path, lines: int = 25) -> str:
    """The last lines of a log."""
    text = log.read_text(encoding="utf-8", errors="replace") if log.exists() else ""
    return "\n".join(text.rstrip().splitlines()[-lines:]) or "(it said nothing)"
