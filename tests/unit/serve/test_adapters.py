"""A server with adapters serves new classes like any, and old ones as the adapter has them."""

import importlib
import re
from pathlib import Path

import numpy
import pytest
from typer.testing import CliRunner

from fit_models.bundle import Bundle, load_bundle
from fit_serve.app import assemble
from fit_serve.cli.command import app
from fit_serve.engine import calibration_store
from fit_serve.settings import load_settings
from support.sequences import request_of
from support.toy_adapter import save_toy_adapter
from support.toy_bundle import CLASS_NAMES, make_toy_bundle
from support.toy_engine import PATIENCE_S, running, submit


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy bundle with an adapter beside it, `zoo`, that brings two classes."""
    folder = tmp_path_factory.mktemp("models")
    make_toy_bundle(folder / "toy")
    save_toy_adapter(folder / "zoo", ("lynx", "emu"))
    return folder


def picture_of(bundle: Bundle, label: int) -> numpy.ndarray:
    with running(bundle) as handle:
        request = request_of("a", (3, 4), label=label, scale=2.0)
        return submit(handle, request).result(PATIENCE_S).pixels.astype(int)


def test_the_engine_makes_pictures_of_old_and_new_classes(folder: Path) -> None:
    adapted = load_bundle(str(folder / "toy"), adapters=[folder / "zoo"])
    new, other, old = (picture_of(adapted, label) for label in (3, 4, 0))
    assert new.shape == (48, 64, 3)
    assert abs(new - other).max() > 10
    assert abs(old - picture_of(load_bundle(str(folder / "toy")), 0)).max() > 10


def test_limits_and_calibrations_tell_of_the_adapter(folder: Path) -> None:
    flags = {"model": str(folder / "toy"), "device": "cpu", "dtype": "float32"}
    flags["calibration"] = "off"
    plain, adapted = (
        assemble(load_settings({**flags, "adapters": adapters}))
        for adapters in ([], [str(folder / "zoo")])
    )
    limits = adapted.service.limits
    assert (limits.name, limits.class_names) == ("toy+zoo", (*CLASS_NAMES, "lynx", "emu"))
    assert limits.class_label("Lynx") == 3
    keys = [calibration_store.key_of(assembly.bundle) for assembly in (plain, adapted)]
    assert [key["model"] for key in keys] == ["toy", "toy+zoo"]
    assert keys[0]["fingerprint"] != keys[1]["fingerprint"]
    for assembly in (plain, adapted):
        assembly.service.close()


def test_generate_takes_an_adapter_and_names_one_that_does_not_fit(
    folder: Path, tmp_path: Path
) -> None:
    asked = ["generate", "--class", "emu", "--height", "32", "--width", "32", "--device", "cpu"]
    asked += ["--dtype", "float32", "-o", str(tmp_path / "emu.png"), "--seed", "1"]
    asked += ["--adapter", str(folder / "zoo"), "--model"]
    made = CliRunner().invoke(app, [*asked, str(folder / "toy")])
    assert (made.exit_code, made.stdout) == (0, f"{tmp_path / 'emu.png'}  seed 1\n")
    other = make_toy_bundle(tmp_path / "other", seed=1)
    refused = CliRunner().invoke(app, [*asked, str(other)])
    assert refused.exit_code == 2
    assert re.search("'zoo' was made for another base", " ".join(refused.stderr.split()))


def test_the_flag_of_serve_is_given_once_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[dict[str, object]] = []

    def stop_here(flags: dict[str, object]) -> None:
        seen.append(flags)
        raise ValueError("no further")

    module = importlib.import_module("fit_serve.cli.serve")  # the package has a function so called
    monkeypatch.setattr(module, "load_settings", stop_here)
    for flags in ([], ["--adapter", "a", "--adapter", "with,comma"]):
        assert CliRunner().invoke(app, ["serve", *flags]).exit_code == 2
    assert seen == [{}, {"adapters": ["a", "with,comma"]}]


def test_an_adapter_given_twice_is_refused(folder: Path) -> None:
    twice = ["--model", str(folder / "toy"), "--adapter", str(folder / "zoo")]
    refused = CliRunner().invoke(app, ["doctor", *twice, "--adapter", str(folder / "zoo")])
    assert refused.exit_code == 2
    assert "class 'lynx' is there already" in " ".join(refused.stderr.split())
