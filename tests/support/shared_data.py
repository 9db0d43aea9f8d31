"""The folder of offline data and weights that some tests want and most machines lack."""

import os
from pathlib import Path

import pytest

from support.repository import ROOT

VARIABLE = "FIT_TEST_DATA"


def shared_data() -> Path:
    """Return the folder named by FIT_TEST_DATA, or ../shared/data; skip the test without one."""
    folder = Path(os.environ.get(VARIABLE, ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no data folder at {folder}; name one in {VARIABLE}")
    return folder
