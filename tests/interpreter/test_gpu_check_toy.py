"""The GPU check, end to end at toy size: whoever gets a GPU first only has to run it."""

import json
import re
import subprocess
import sys

import pytest

from support.repository import ROOT

WAYS = {
    "kernels": {"eager", "fused", "compiled"},
    "graphs": {"kernels", "kernels + graphs", "kernels + compile"},
    "network": {"eager", "eager, grouped", "kernels", "kernels + compile", "kernels + graph"},
}


@pytest.mark.slow
def test_the_gpu_check_runs_end_to_end_at_toy_size_and_leaves_no_row_silent():
    ran = subprocess.run(
        [sys.executable, str(ROOT / "benchmarks" / "gpu_check.py"), "--toy"],
        capture_output=True,
        text=True,
        timeout=115,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    written = re.search(r"written: (\S+)\.md, \1\.json", ran.stdout)
    assert written is not None
    with open(f"{written[1]}.json", encoding="utf-8") as file:
        data = json.load(file)
    assert data["broken"] == {}
    parts = {m["part"] for m in data["measurements"]}
    assert parts == {"tests", "ceilings", "kernels", "network", "graphs", "attention", "serving"}
    for m in data["measurements"]:
        assert not m["seconds"] or m["ours"] in m["seconds"], m
        assert WAYS.get(m["part"], set()) <= m["seconds"].keys() | m["missing"].keys(), m
    tests = next(m for m in data["measurements"] if m["part"] == "tests")
    assert tests["outcome"].startswith("pass: "), tests
