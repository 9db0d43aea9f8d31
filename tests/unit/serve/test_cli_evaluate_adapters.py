"""Pictures that were kept are those of one adapter: another training of it makes new ones."""

from pathlib import Path

from fit_models.adapter import ADAPTER_WEIGHTS
from fit_serve.cli.evaluate import adapter_facts


def test_without_adapters_nothing_is_noted():
    assert adapter_facts(()) == {}


def test_an_adapter_trained_again_under_its_name_is_another(tmp_path: Path):
    weights = tmp_path / ADAPTER_WEIGHTS
    weights.write_bytes(b"first")
    before = adapter_facts([str(tmp_path)])
    assert adapter_facts([str(tmp_path)]) == before
    weights.write_bytes(b"second")
    assert adapter_facts([str(tmp_path)]) != before
