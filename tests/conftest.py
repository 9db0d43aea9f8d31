"""One thread for torch, unless the caller's environment says otherwise.

Tests compute on tensors of a few kilobytes. More threads only wait for each other there, and where
the machine has other work to do they spin through each other's turns: a hundred times as long.
Set before anything imports torch, and inherited by the processes that tests start, as is
the folder for what servers keep.
"""

import os
import tempfile

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
# Calibrations that servers keep are those of one run of the tests, not the user's.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="fit-serve-tests-")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--parity", action="store_true", help="end with a table of recorded runs")


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if config.getoption("--parity"):
        from support.parity import parity_lines

        for line in parity_lines():
            terminalreporter.write_line(line)
