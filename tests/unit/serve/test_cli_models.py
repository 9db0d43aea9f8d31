"""`fit-serve models` names every family and every release, each with what can be done."""

import json

from typer.testing import CliRunner

from fit_models.families import FAMILIES
from fit_models.released.known import known_releases
from fit_serve.cli.command import app


def test_every_release_is_listed_with_a_command_or_a_reason():
    result = CliRunner().invoke(app, ["models"])
    assert result.exit_code == 0, result.output
    for family in FAMILIES:
        assert f"{family}: " in result.output
    for each in known_releases():
        assert f"{each.release.name} (" in result.output
    commands = [x for x in result.output.splitlines() if x.startswith("  fit-serve convert")]
    assert len(commands) == sum(each.served for each in known_releases())
    sit = "  fit-serve convert SiT-XL-2-256.pt BUNDLE --allow-pickle --prediction velocity"
    assert any(command.startswith(sit) for command in commands)


def test_named_configs_of_releases_are_named_sizes():
    for each in known_releases():
        if each.served:
            assert each.release.config_name in FAMILIES[each.family].named_configs


def test_json_is_for_programs():
    result = CliRunner().invoke(app, ["models", "--json"])
    rows = json.loads(result.output)
    assert {row["family"] for row in rows} >= set(FAMILIES)
