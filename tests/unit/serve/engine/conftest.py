"""The toy bundle, made and loaded once."""

import pytest

from fit_models.bundle import Bundle, load_bundle
from support.toy_bundle import make_toy_bundle


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return load_bundle(str(make_toy_bundle(tmp_path_factory.mktemp("toy"))))
