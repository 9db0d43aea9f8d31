"""A model is asked for classes or by prompts, never both; who mixes them up is told what works."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from prometheus_client import CollectorRegistry
from starlette.testclient import TestClient
from typer.testing import CliRunner

import fit_serve.app as app_module
from fit_serve.cli.command import app
from fit_serve.errors import InvalidRequest
from fit_serve.grpc_api.convert import request_of, response_of
from fit_serve.grpc_api.v1 import generation_pb2 as pb
from fit_serve.http_api import build_http_api
from fit_serve.request import GenerationRequest, GenerationResult, GenerationTimings
from fit_serve.service import GenerationService
from fit_serve.telemetry import Telemetry
from support.fake_engine import LIMITS, FakeEngine
from support.fake_handle import BUNDLE, FakeHandle

READER = replace(LIMITS, name="reader", class_names=(), max_prompt_characters=50)
SIZE: dict[str, Any] = {"height": 64, "width": 96}


def client_of(limits: Any, engine: FakeEngine | None = None) -> TestClient:
    telemetry = Telemetry(CollectorRegistry(), limits.name)
    service = GenerationService(engine or FakeEngine(), limits, telemetry)
    return TestClient(build_http_api(service))


@pytest.mark.parametrize(
    ("limits", "given", "param", "said"),
    [
        (
            LIMITS,
            {"prompt": "a"},
            "prompt",
            "prompt is not for fake-fit, which draws classes; give class",
        ),
        (LIMITS, {"class": 1, "prompt": "a"}, "prompt", "draws classes; leave prompt out"),
        (
            LIMITS,
            {"class": 1, "negative_prompt": ""},
            "negative_prompt",
            "leave negative_prompt out",
        ),
        (LIMITS, {}, "class", "class is required: the name"),
        (LIMITS, {"class": None}, "class", "class is required: the name"),
        (
            READER,
            {"class": 1},
            "class",
            "class is not for reader, which reads prompts; give prompt",
        ),
        (READER, {"class": 1, "prompt": "a"}, "class", "reads prompts; leave class out"),
        (READER, {}, "prompt", "prompt is required: a string"),
        (READER, {"negative_prompt": "a"}, "prompt", "prompt is required: a string"),
        (READER, {"prompt": 7}, "prompt", "prompt must be a string, not 7"),
        (READER, {"prompt": "a" * 51}, "prompt", "prompt has 51 characters; the limit is 50"),
        (
            READER,
            {"prompt": "", "negative_prompt": "a" * 51},
            "negative_prompt",
            "negative_prompt has 51 characters; the limit is 50",
        ),
    ],
)
def test_what_cannot_be_asked_of_this_model_is_refused_with_what_can(
    limits: Any, given: dict[str, Any], param: str, said: str
):
    answer = client_of(limits).post("/generate", json={**SIZE, **given})
    error = answer.json()["error"]
    assert (answer.status_code, error["param"]) == (400, param)
    assert said in error["message"]
    assert "\n" not in error["message"]


def test_prompts_reach_the_engine_and_come_back():
    engine = FakeEngine()
    asked = {**SIZE, "prompt": "a heron", "negative_prompt": "fog", "num_images": 2}
    answer = client_of(READER, engine).post("/generate", json=asked).json()
    assert (answer["prompt"], answer["negative_prompt"]) == ("a heron", "fog")
    assert "class" not in answer
    for sequence in engine.submitted:
        assert (sequence.prompt, sequence.negative_prompt) == ("a heron", "fog")
        assert sequence.class_label is None


def test_the_negative_prompt_is_empty_and_the_file_is_called_as_the_prompt():
    engine = FakeEngine()
    answer = client_of(READER, engine).post(
        "/generate", json={**SIZE, "prompt": "a heron/é", "seed": 1}
    )
    assert answer.status_code == 200
    assert engine.submitted[0].negative_prompt == ""
    assert 'filename="a-heron-64x96-1.png"' in answer.headers["content-disposition"].replace(
        "--", ""
    )


def test_an_answer_of_a_model_that_draws_classes_says_nothing_of_prompts():
    answer = client_of(LIMITS).post(
        "/generate", json={**SIZE, "class": 1}, headers={"accept": "application/json"}
    )
    assert answer.json()["class"] == {"id": 1, "name": "sunflower"}
    assert not {"prompt", "negative_prompt"} & answer.json().keys()


@pytest.mark.parametrize(
    ("limits", "required", "missing"),
    [(LIMITS, "class", {"prompt", "negative_prompt"}), (READER, "prompt", {"class"})],
)
def test_the_document_has_the_fields_of_this_kind_of_model(
    limits: Any, required: str, missing: set[str]
):
    document = client_of(limits).get("/openapi.json").json()
    body = document["paths"]["/generate"]["post"]["requestBody"]
    schema = body["content"]["application/json"]["schema"]
    assert schema["required"] == [required, "height", "width"]
    assert not missing & schema["properties"].keys()
    assert "default" not in schema["properties"][required]
    assert set(schema["examples"][0]) == {required, "height", "width"}
    if limits is READER:
        assert schema["properties"]["prompt"]["maxLength"] == 50


def test_the_prompt_of_openais_clients_is_the_prompt():
    engine = FakeEngine()
    body = {"prompt": "a heron", "negative_prompt": "fog", "size": "96x64"}
    assert client_of(READER, engine).post("/v1/images/generations", json=body).status_code == 200
    asked = engine.submitted[0]
    assert (asked.class_label, asked.prompt, asked.negative_prompt) == (None, "a heron", "fog")
    answer = client_of(READER).post("/v1/images/generations", json={**body, "class_labels": [1]})
    assert answer.status_code == 400


def test_prompts_come_over_grpc():
    message = pb.GenerateRequest(prompt="a heron", negative_prompt="fog", height=64, width=96)
    asked = request_of(message, READER)
    assert (asked.class_label, asked.prompt, asked.negative_prompt) == (None, "a heron", "fog")
    timings = GenerationTimings(0.0, 0.0, 0.0, 0.0, 0.0)
    told = response_of(GenerationResult(asked, "reader", None, (b"",), "image/png", timings))
    assert (told.prompt, told.negative_prompt) == ("a heron", "fog")
    assert not told.HasField("image_class")
    for wrong in (pb.GenerateRequest(class_label=1, height=64, width=96), pb.GenerateRequest()):
        with pytest.raises(InvalidRequest, match=r"reads prompts; give prompt|prompt is required"):
            request_of(wrong, READER)
    with pytest.raises(InvalidRequest, match="draws classes"):
        request_of(message, LIMITS)


def test_the_command_line_takes_a_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    bundle = SimpleNamespace(**{**vars(BUNDLE), "class_names": (), "text_encoder": object()})
    monkeypatch.setattr(app_module, "load_bundle", lambda *_: bundle)
    monkeypatch.setattr(app_module, "EngineHandle", FakeHandle)
    size = ["generate", "--height", "32", "--width", "48", "-o", str(tmp_path / "a.png")]
    made = CliRunner().invoke(app, [*size, "--prompt", "a heron", "--negative-prompt", "fog"])
    assert made.exit_code == 0, made.output
    with Image.open(tmp_path / "a.png") as image:
        said = json.loads(image.info["parameters"])
    assert (said["prompt"], said["negative_prompt"]) == ("a heron", "fog")
    refused = CliRunner().invoke(app, [*size, "--class", "1"])
    assert refused.exit_code != 0
    assert "reads prompts; give prompt" in str(refused.exception) + refused.output


def test_the_service_refuses_what_a_transport_let_through():
    request = GenerationRequest("gen-1", None, 64, 96, 1, prompt="a")
    READER.check(request)
    with pytest.raises(InvalidRequest, match="draws classes; give class"):
        LIMITS.check(request)
    with pytest.raises(InvalidRequest, match="reads prompts"):
        READER.check(GenerationRequest("gen-1", 1, 64, 96, 1))
