"""The table of what was compiled: as JSON for tests and diffs, as Markdown for people.

A row is one configuration on one GPU, as plain values; `problems` says what a row must not be.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from itertools import groupby
from pathlib import Path
from typing import Any

from fit_kernels.aot.specialisation import source_hash
from fit_kernels.aot.targets import (
    REGISTER_UNIT,
    REGISTERS,
    TARGETS,
    TENSOR_MEMORY_COLUMNS,
    WARP,
)
from fit_kernels.aot.workers import Result

Row = dict[str, Any]
_IDENTITY = ("kernel", "arguments", "constants", "num_warps", "num_stages")
_SHARED = ("source", "used_by")  # by all GPUs of a configuration


def identity_of(row: Row) -> tuple[str, str, str, int, int, int]:
    """What tells a row from others: that of its configuration, and the GPU."""
    return (*(row[name] for name in _IDENTITY), row["target"])


def row_of(result: Result, used_by: Iterable[str]) -> Row:
    """Turn a measured result into a row."""
    configuration, measurement = result.configuration, result.measurement
    assert measurement is not None
    return {
        **dict(zip(_IDENTITY, configuration.identity, strict=True)),
        "target": result.target.arch,
        "source": source_hash(configuration.function),
        "used_by": list(used_by),
        **measurement.to_dict(),
    }


def problems(row: Row) -> list[str]:
    """What is wrong with a row: it spills, or does not fit a multiprocessor."""
    target = TARGETS[row["target"]]
    units = -(-row["registers"] // REGISTER_UNIT)
    registers = units * REGISTER_UNIT * WARP * row["num_warps"]
    found = []
    if row["spill_bytes"]:
        found.append(f"spills {row['spill_bytes']} bytes a thread")
    if registers > REGISTERS:
        found.append(f"needs {registers} registers, there are {REGISTERS}")
    if row["shared_bytes"] > target.shared_bytes:
        found.append(f"needs {row['shared_bytes']} bytes shared, there are {target.shared_bytes}")
    if row["tensor_columns"] > TENSOR_MEMORY_COLUMNS:
        found.append(f"needs {row['tensor_columns']} columns of {TENSOR_MEMORY_COLUMNS}")
    return found


def name_of(row: Row) -> str:
    """Name a row in a message."""
    return f"{row['kernel']} [{row['constants']}; {', '.join(row['used_by'])}] sm_{row['target']}"


def write_json(path: Path, triton_version: str, rows: Iterable[Row]) -> None:
    """Write sorted rows, a configuration a line, what was measured under each GPU's number."""
    lines = []
    for _, group in groupby(sorted(rows, key=identity_of), key=lambda row: identity_of(row)[:-1]):
        members = list(group)
        line = {name: members[0][name] for name in (*_IDENTITY, *_SHARED)}
        line["measured"] = {
            str(row["target"]): {k: v for k, v in row.items() if k not in line and k != "target"}
            for row in members
        }
        lines.append(json.dumps(line))
    body = ",\n".join(lines)
    path.write_text(f'{{"triton": "{triton_version}", "configurations": [\n{body}\n]}}\n')


def read_json(path: Path) -> list[Row]:
    """Read what `write_json` wrote, a row for every configuration and GPU."""
    rows = []
    for line in json.loads(path.read_text())["configurations"]:
        for target, measured in line.pop("measured").items():
            rows.append({**line, **measured, "target": int(target)})
    return rows


def write_markdown(path: Path, triton_version: str, rows: Iterable[Row]) -> None:
    """Write one table a kernel, a line a configuration; cells hold one number for each GPU."""
    ordered = sorted(rows, key=identity_of)
    targets = sorted({row["target"] for row in ordered})
    names = " / ".join(f"sm_{target}" for target in targets)
    lines = [
        "# Kernels, compiled ahead of time",
        "",
        f"Written by `make aot` with Triton {triton_version}, without a GPU. Cells: {names},",
        "or one value where all agree. Loads and stores are instructions; what is vector and what",
        "scalar is defined in `kernels/fit_kernels/aot/compilation.py`.",
    ]
    for kernel, of_kernel in groupby(ordered, key=lambda row: row["kernel"]):
        lines += ["", f"## {kernel}", "", _line(_HEADINGS), _line("---" for _ in _HEADINGS)]
        for _, group in groupby(of_kernel, key=lambda row: identity_of(row)[:-1]):
            lines.append(_configuration_line(list(group)))
    path.write_text("\n".join(lines) + "\n")


_HEADINGS = (
    "used by", "constants", "warps", "stages", "registers", "spills", "shared KiB",
    "vector loads", "scalar loads", "vector stores", "scalar stores", "MMA",
)  # fmt: skip


def _configuration_line(rows: list[Row]) -> str:
    first = rows[0]
    constants = " ".join(w for w in first["constants"].split() if not w.endswith("=None"))
    absent = [w.removesuffix("=None") for w in first["constants"].split() if w.endswith("=None")]
    without = f"; without {', '.join(a.removesuffix('_ptr') for a in absent)}" if absent else ""
    return _line(
        (
            "; ".join(_joined_users(first["used_by"])),
            constants + without,
            first["num_warps"],
            first["num_stages"],
            _cell(row["registers"] for row in rows),
            _cell(row["spill_bytes"] for row in rows),
            _cell(f"{row['shared_bytes'] / 1024:.1f}" for row in rows),
            _cell(row["vector_loads"] for row in rows),
            _cell(row["scalar_loads"] for row in rows),
            _cell(row["vector_stores"] for row in rows),
            _cell(row["scalar_stores"] for row in rows),
            _cell(row["matrix_opcode"] or "-" for row in rows),
        )
    )


def _joined_users(users: Iterable[str]) -> list[str]:
    """Name each dtype once: "a, b bfloat16"."""
    by_dtype: dict[str, list[str]] = {}
    for user in users:
        name, _, dtype = user.rpartition(" ")
        by_dtype.setdefault(dtype, []).append(name)
    return [f"{', '.join(names)} {dtype}" for dtype, names in by_dtype.items()]


def _cell(values: Iterable[object]) -> str:
    texts = [str(value) for value in values]
    return texts[0] if len(set(texts)) == 1 else " / ".join(texts)


def _line(cells: Iterable[object]) -> str:
    return f"| {' | '.join(map(str, cells))} |"


def summary(rows: list[Row], targets: Mapping[int, object]) -> str:
    """Sum up: the last line of `make aot`."""
    kernels = len({identity_of(row)[:-1] for row in rows})
    spills = sum(row["spill_bytes"] > 0 for row in rows)
    scalar = sum(row["scalar_loads"] for row in rows)
    return (
        f"{kernels} kernels x {len(targets)} targets compiled, {spills} spills, "
        f"{scalar} scalar loads"
    )
