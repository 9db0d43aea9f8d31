"""What ran where: device, versions and commit, for the head of a report.

Usage: `python benchmarks/device_facts.py` prints them as JSON. Knows nothing of measurements. Run
as a process of its own by the check, which itself must not hold the device.
"""

from __future__ import annotations

import importlib.util
import json
import platform
import subprocess
from pathlib import Path

import torch

_ROOT = Path(__file__).parent.parent


def facts() -> dict[str, str]:
    """Names and values, in the order of a report."""
    return {
        "device": _device(),
        "driver": _said("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _triton(),
        "commit": _commit(),
    }


def _device() -> str:
    if not torch.cuda.is_available():
        return f"cpu ({platform.machine()})"
    found = torch.cuda.get_device_properties(0)
    return (
        f"{found.name}, capability {found.major}.{found.minor}, "
        f"{found.multi_processor_count} multiprocessors, {found.L2_cache_size / 2**20:.0f} MiB L2, "
        f"{found.total_memory / 2**30:.0f} GiB"
    )


def _triton() -> str:
    if importlib.util.find_spec("triton") is None:
        return "none"
    import triton

    return triton.__version__


def _commit() -> str:
    commit = _said("git", "-C", str(_ROOT), "rev-parse", "--short=12", "HEAD")
    changed = _said("git", "-C", str(_ROOT), "status", "--porcelain", "--untracked-files=no")
    return commit + (" and changes" if changed not in ("", "unknown") else "")


def _said(*command: str) -> str:
    """What a command prints, in one line; "unknown" where it is not there or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return ", ".join(done.stdout.split("\n")).strip(", ")


if __name__ == "__main__":
    print(json.dumps(facts()))
