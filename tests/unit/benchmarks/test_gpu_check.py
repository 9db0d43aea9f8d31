"""What the GPU check says of what it finds; the check itself runs in tests/interpreter."""

import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import pytest
import torch

from fit_models.config import named_config
from support.repository import ROOT


@pytest.fixture(autouse=True)
def benchmarks_on_the_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [str(ROOT / "benchmarks"), *sys.path])


def module(name: str) -> ModuleType:
    return import_module(name)


def test_a_share_below_the_target_is_a_miss_and_no_time_is_no_verdict():
    make = module("measurement").Measurement
    row = make("kernels", "case", "fused", "eager", work=90.0, work_unit="B", target=0.85)
    row.ceilings = {"of copy": 100.0}
    assert row.verdict() == "not measured"
    row.seconds = {"fused": 1.0, "eager": 4.0}
    assert row.verdict() == "pass (>= 85%)"
    assert row.gain() == 4.0
    row.seconds["fused"] = 1.2
    assert row.verdict() == "MISS (>= 85%)"


def test_rows_of_a_process_that_was_stopped_are_kept_and_the_last_word_counts(tmp_path: Path):
    measurement = module("measurement")
    file = tmp_path / "rows.jsonl"
    ledger = measurement.Ledger(file, say=lambda text: None)
    for seconds in (1.0, 2.0):
        ledger.put(measurement.Measurement("kernels", "case", seconds={"eager": seconds}))
    with file.open("a") as stopped:
        stopped.write('{"part": "kernels", "ca')
    (row,) = measurement.read_ledger(file)
    assert row.seconds == {"eager": 2.0}


def test_bytes_of_an_operator_are_its_tensors_once():
    cases = module("kernel_cases")
    tokens, config = 512, named_config("FiTv2-XL/2")
    shape, width = cases.Shape(tokens, config), config.hidden_size
    row_index = 8 * tokens
    norm = cases.bytes_of("layer_norm_modulate", shape, torch.bfloat16, backward=False)
    assert norm == 2 * (2 * tokens * width + 2 * shape.sequences * width) + row_index
    gate = cases.bytes_of("swiglu", shape, torch.bfloat16, backward=False)
    assert gate == 2 * tokens * 3 * config.mlp_hidden
    rotate = cases.bytes_of("qk_norm_rope", shape, torch.bfloat16, backward=False)
    slab = 4 * tokens * config.head_dim  # cosines and sines, fp32
    assert rotate == 2 * tokens * 4 * width + slab + row_index


def test_fusion_is_predicted_to_leave_a_third_of_the_traffic_between_matrix_products():
    """63 against 20 values per token, block and width, counted by hand when this was planned."""
    bytes_moved, cases = module("bytes_moved"), module("kernel_cases")
    shape = cases.Shape(2048, named_config("FiTv2-XL/2"))
    unfused = fused = 0
    for operator, times in bytes_moved.PER_BLOCK.items():
        unfused += times * bytes_moved.unfused_traffic(operator, shape, backward=False).num_bytes
        fused += times * cases.bytes_of(operator, shape, torch.bfloat16, backward=False)
    unit = 2 * shape.tokens * shape.config.hidden_size
    assert unfused / unit == pytest.approx(63, abs=2)
    assert fused / unit == pytest.approx(20, abs=0.5)


JUNIT = """<testsuites><testsuite>
<testcase name="test_a"/><testcase name="test_b"><skipped message="needs a CUDA device"/></testcase>
<testcase name="file_c"><error message="collection failure">{error}</error></testcase>
</testsuite></testsuites>"""


@pytest.mark.parametrize(
    ("missing", "verdict"),
    [
        ("diffusers", "pass: 1 passed, 2 skipped"),
        ("fit_kernels.gone", "FAILED: 1 failed, 1 passed, 1 skipped"),
    ],
)
def test_a_file_of_tests_that_needs_a_package_not_here_is_skipped_but_ours_must_be_here(
    tmp_path: Path, missing: str, verdict: str
):
    xml = tmp_path / "tests.xml"
    xml.write_text(JUNIT.format(error=f"ModuleNotFoundError: No module named '{missing}'"))
    row, failed = module("pytest_outcomes").read_outcomes(xml, 1, tmp_path / "no.log")
    assert row.outcome == verdict
    assert failed == verdict.startswith("FAILED")


def test_without_pytest_the_tests_count_as_skipped_and_a_hang_as_failed(tmp_path: Path):
    log, none = tmp_path / "tests.log", tmp_path / "none.xml"
    log.write_text("/usr/bin/python3: No module named pytest\n")
    row, failed = module("pytest_outcomes").read_outcomes(none, 1, log)
    assert row.outcome.startswith("skipped: pytest is not installed")
    assert not failed
    log.write_text("")
    assert module("pytest_outcomes").read_outcomes(none, None, log)[1]
