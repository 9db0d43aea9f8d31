"""The composition root puts the parts together, and starts and stops them in order."""

from collections.abc import Iterator

import pytest
from starlette.testclient import TestClient

from fit_kernels import use_attention
from fit_serve import app as app_module
from fit_serve.app import Assembly, assemble, build_app, http_app
from fit_serve.settings import load_settings
from support.fake_handle import BUNDLE, FakeHandle


@pytest.fixture
def assembly(monkeypatch: pytest.MonkeyPatch) -> Iterator[Assembly]:
    loaded: list[tuple[str, str, str, tuple[str, ...]]] = []

    def load(model: str, device: str, dtype: str, adapters: tuple[str, ...]) -> object:
        loaded.append((model, device, dtype, adapters))
        return BUNDLE

    monkeypatch.setattr(app_module, "load_bundle", load)
    monkeypatch.setattr(app_module, "EngineHandle", FakeHandle)
    said: list[str] = []
    flags = {"model": "a/folder", "device": "cpu", "grace_time_s": "2.5", "max_num_seqs": "9"}
    flags["adapters"] = "an/adapter"
    yield assemble(load_settings(flags), said.append)
    assert said == ["loading a/folder"]
    assert loaded == [("a/folder", "cpu", "auto", ("an/adapter",))]


def engine_of(assembly: Assembly) -> FakeHandle:
    engine = assembly.engine
    assert isinstance(engine, FakeHandle)
    return engine


def test_the_limits_are_those_of_bundle_and_settings(assembly: Assembly) -> None:
    limits = assembly.service.limits
    assert (limits.name, limits.class_names) == ("tiny", BUNDLE.class_names)
    assert (limits.size_multiple, limits.min_side, limits.max_tokens) == (16, 32, 4096)
    assert limits.defaults.num_inference_steps == 11
    assert "euler" in limits.samplers
    assert "dopri5" not in limits.samplers


def test_the_application_starts_serves_drains_and_stops_in_this_order(assembly: Assembly) -> None:
    engine = engine_of(assembly)
    with TestClient(http_app(assembly)) as client:
        assert engine.events == ["start"]
        assert client.get("/readyz").status_code == 200
        asked = {"class": "sunflower", "height": 32, "width": 48}
        assert client.post("/generate", json=asked).headers["content-type"] == "image/png"
        text = client.get("/metrics").text
        assert 'fit_num_requests_running{model_name="tiny"} 3.0' in text
        assert 'fit_num_requests_waiting{model_name="tiny"} 5.0' in text
        assert "process_resident_memory_bytes" in text
    assert engine.events == ["start", "drain 2.5", "stop"]
    assert [sequence.num_inference_steps for sequence in engine.submitted] == [11]


def test_the_engine_gets_its_config_from_the_settings(assembly: Assembly) -> None:
    engine = engine_of(assembly)
    assert engine.bundle is BUNDLE
    assert getattr(engine.config, "max_num_seqs", None) == 9


def test_a_factory_builds_everything_from_the_environment(
    assembly: Assembly, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FIT_SERVE_MODEL", "a/folder")
    monkeypatch.setenv("FIT_SERVE_DEVICE", "cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(app_module, "load_bundle", lambda *_: BUNDLE)
        assert build_app().title == "fit-serve"


def test_kernels_that_cannot_run_are_refused_before_anything_is_served(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(app_module, "load_bundle", lambda *_: BUNDLE)
    try:
        with pytest.raises(ValueError, match="attention 'torch-varlen': device is cpu; it must be"):
            assemble(load_settings({"attention": "torch-varlen"}))
        with pytest.raises(ValueError, match="operator backend 'fused' cannot run: "):
            assemble(load_settings({"operators": "fused"}))
    finally:
        use_attention("auto")
