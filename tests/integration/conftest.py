"""The toy bundle, made once."""

from pathlib import Path

import pytest

from support.toy_bundle import make_toy_bundle


@pytest.fixture(scope="session")
def toy_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("toy"))
