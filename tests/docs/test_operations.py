"""`docs/operations.md` has every setting and every metric, with its default and its labels."""

import re

from prometheus_client import CollectorRegistry, generate_latest

from fit_serve.settings import Settings
from fit_serve.telemetry import Telemetry
from support.repository import ROOT

OPERATIONS = (ROOT / "docs" / "operations.md").read_text()


def table_rows(heading: str) -> dict[str, list[str]]:
    """First cell without its backticks -> the other cells, of the first table of a section."""
    section = OPERATIONS.partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("| `")
    ]
    return {first.strip("`| "): rest for first, *rest in rows}


def metric_types(registry: CollectorRegistry) -> dict[str, str]:
    """Name -> type, as a scraper sees them; without the creation times of the client library."""
    types = re.findall(r"^# TYPE (\S+) (\S+)$", generate_latest(registry).decode(), re.MULTILINE)
    return {name: kind for name, kind in types if not name.endswith("_created")}


def test_every_setting_has_a_row_and_every_row_a_setting():
    prefix = Settings.model_config.get("env_prefix", "")
    assert set(table_rows("Settings")) == {f"{prefix}{n}".upper() for n in Settings.model_fields}


def test_the_defaults_of_settings_are_told():
    prefix = Settings.model_config.get("env_prefix", "")
    rows = table_rows("Settings")
    for name, field in Settings.model_fields.items():
        default = "none" if field.default is None else str(field.default)
        told = rows[f"{prefix}{name}".upper()][0].strip("` ")
        assert told.lower() == default.lower(), name


def test_every_metric_has_a_row_with_its_type_and_every_row_a_metric():
    registry = CollectorRegistry()
    telemetry = Telemetry(registry, "tiny")
    telemetry.model_info({"version": "0"})
    told = {name: cells[0] for name, cells in table_rows("Metrics").items()}
    assert told == metric_types(registry)
