"""Probes follow the engine; documents and metrics are there from the start."""

from typing import Any

import pytest

from support.fake_engine import CLASS_NAMES, FakeEngine
from support.http_client import client_of


@pytest.mark.parametrize(
    ("is_ready", "is_alive", "live", "ready"),
    [
        (True, True, 200, 200),
        (False, True, 200, 503),
        (True, False, 503, 503),
        (False, False, 503, 503),
    ],
)
def test_probes_follow_the_engine(is_ready: bool, is_alive: bool, live: int, ready: int) -> None:
    engine = FakeEngine()
    engine.is_ready, engine.is_alive = is_ready, is_alive
    client = client_of(engine)
    assert client.get("/livez").status_code == live
    for path in ("/readyz", "/health"):
        answer = client.get(path)
        assert answer.status_code == ready
        if ready == 503:
            assert answer.json()["error"]["type"] == "service_unavailable"
            assert int(answer.headers["retry-after"]) >= 1


def test_metrics_are_prometheus_text_from_the_start() -> None:
    answer = client_of(FakeEngine()).get("/metrics")
    assert answer.headers["content-type"].startswith("text/plain")
    assert 'fit_num_requests_running{model_name="fake-fit"} 0.0' in answer.text
    assert "fit_packing_efficiency_ratio_count" in answer.text


def test_metrics_speak_openmetrics_to_those_who_ask() -> None:
    headers = {"accept": "application/openmetrics-text; version=1.0.0"}
    answer = client_of(FakeEngine()).get("/metrics", headers=headers)
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return client_of(FakeEngine()).get("/openapi.json").json()


def test_the_document_has_the_body_with_the_limits_of_the_model(document: dict[str, Any]) -> None:
    body = document["paths"]["/generate"]["post"]["requestBody"]
    assert body["required"] is True
    schema = body["content"]["application/json"]["schema"]
    assert schema["required"] == ["class", "height", "width"]
    assert schema["additionalProperties"] is False
    fields = schema["properties"]
    assert (fields["height"]["minimum"], fields["height"]["multipleOf"]) == (32, 16)
    assert fields["class"]["examples"] == list(CLASS_NAMES)
    assert fields["num_inference_steps"]["default"] == 20
    assert all(field["description"] for field in fields.values())


def test_the_document_has_both_answers_and_every_error(document: dict[str, Any]) -> None:
    answers = document["paths"]["/generate"]["post"]["responses"]
    assert set(answers) == {"200", "400", "413", "415", "429", "499", "500", "503", "504"}
    pictures = {"image/png", "image/jpeg", "image/webp"}
    kinds = {*pictures, "application/json", "text/event-stream"}
    assert set(answers["200"]["content"]) == kinds
    assert "x-seed" in answers["200"]["headers"]
    for status, answer in answers.items():
        if status != "200":
            schema = answer["content"]["application/json"]["schema"]
            assert schema == {"$ref": "#/components/schemas/ErrorBody"}


def test_the_documentation_page_is_served() -> None:
    assert "swagger" in client_of(FakeEngine()).get("/docs").text
