"""The committed table of compiled kernels tells of the kernels that are launched now.

Nothing is compiled here: `make aot` does that, and writes the table.
"""

import functools

import pytest

pytest.importorskip("triton")

from fit_kernels.aot.coverage import Counts, covered
from fit_kernels.aot.report import Row, identity_of, name_of, problems, read_json
from fit_kernels.aot.specialisation import source_hash
from fit_kernels.aot.targets import TARGETS
from support.repository import ROOT

TABLE = ROOT / "benchmarks" / "results" / "aot.json"
STALE = "the table is not of these kernels: run `make aot` and commit what it writes"
HALF = ("bfloat16", "float16")
# What is not moved in 16 bytes a lane, and why.
NARROW = {
    # Its MLP has 682 values, no multiple of 8.
    "swiglu": {"FiTv2-Ti/2"},
    "linear_fixed_tiles": {"FiTv2-Ti/2"},
}


@functools.cache
def table() -> dict[tuple[str, str, str, int, int, int], Row]:
    return {identity_of(row): row for row in read_json(TABLE)}


def rows_of(*dtypes: str) -> list[Row]:
    return [row for row in table().values() if row["used_by"][0].endswith(dtypes)]


def test_every_launch_has_a_row_for_each_gpu_and_no_row_is_left_over():
    launched = {(*c.identity, arch): users for c, users in covered().items() for arch in TARGETS}
    missing = sorted(launched.keys() - table().keys())
    assert not missing, f"{STALE}\nno row for {missing[0]} and {len(missing) - 1} more"
    assert table().keys() == launched.keys(), STALE
    assert {key: row["used_by"] for key, row in table().items()} == launched, STALE


def test_every_row_is_of_the_kernel_as_it_reads_now():
    now = {c.kernel: source_hash(c.function) for c in covered()}
    changed = {r["kernel"] for r in table().values() if r["source"] != now.get(r["kernel"])}
    assert changed == set(), STALE


def test_nothing_spills_and_everything_fits_its_gpu():
    assert [f"{name_of(r)}: {p}" for r in table().values() for p in problems(r)] == []


def test_half_precision_is_loaded_and_stored_in_vectors_wherever_rows_are_aligned():
    narrow = [
        name_of(row)
        for row in rows_of(*HALF)
        if row["scalar_loads"] or row["scalar_stores"] or not row["vector_loads"]
        if not NARROW.get(row["kernel"].partition(".")[0], set())
        & {user.split()[0] for user in row["used_by"]}
    ]
    assert narrow == []


def test_attention_multiplies_on_the_tensor_cores_of_each_gpu():
    rows = [row for row in rows_of(*HALF) if row["kernel"].startswith("attention")]
    assert rows
    expected = {arch: target.matrix_opcode for arch, target in TARGETS.items()}
    assert [name_of(r) for r in rows if r["matrix_opcode"] != expected[r["target"]]] == []


def test_no_configuration_depends_on_how_much_is_in_a_pack():
    usual = {c.identity for c in covered()}
    assert {c.identity for c in covered(Counts(tokens=4001, rows=1, sequences=3))} == usual
