"""Whatever a client sends, it gets the one error object, and never a 5xx."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fit_serve.http_api.json_body import MAX_BODY_BYTES
from fit_serve.http_api.schemas import GenerateBody
from support.fake_engine import FakeEngine
from support.http_client import JSON_HEADERS, client_of

GOOD: dict[str, Any] = {"class": 1, "height": 32, "width": 48}
ENGINE = FakeEngine()
CLIENT = client_of(ENGINE)


def refusal(answer: Any, status: int = 400) -> dict[str, Any]:
    """Check that an answer is the error object with this status, and give what is in it."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert list(body) == ["error"]
    assert set(body["error"]) == {"message", "type", "param", "code"}
    assert body["error"]["message"]
    assert answer.headers["x-request-id"]
    return body["error"]


def post(body: str | bytes) -> Any:
    return CLIENT.post("/generate", content=body, headers=JSON_HEADERS)


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"height": "64"}, "height", ["integer", "'64'"]),
        ({"height": 64.0}, "height", ["integer", "64.0"]),
        ({"height": True}, "height", ["integer", "true"]),
        ({"height": None}, "height", ["integer", "null"]),
        ({"height": [64]}, "height", ["integer", "an array of 1"]),
        ({"height": 100}, "height", ["100", "16", "96", "112"]),
        ({"height": 16}, "height", ["16", "32"]),
        ({"height": 1024, "width": 1024}, "height", ["1024", "4096", "256"]),
        ({"class": "sunflwer"}, "class", ["sunflwer", "did you mean sunflower"]),
        ({"class": 99}, "class", ["99", "0 to 5"]),
        ({"class": True}, "class", ["name", "id", "true"]),
        ({"class": None}, "class", ["name", "id", "required"]),
        ({"guidance_scale": "2"}, "guidance_scale", ["number", "'2'"]),
        ({"guidance_scale": False}, "guidance_scale", ["number", "false"]),
        ({"guidance_scale": 20.5}, "guidance_scale", ["20.5", "20.0"]),
        ({"guidance_interval": [0.5]}, "guidance_interval", ["two", "an array of 1"]),
        ({"guidance_interval": [0, "1"]}, "guidance_interval", ["two", "'1'", "index 1"]),
        ({"guidance_interval": [0.5, 0.2]}, "guidance_interval", ["0.5", "0.2"]),
        ({"seed": 2**63}, "seed", [str(2**63), str(2**63 - 1)]),
        ({"seed": 1.5}, "seed", ["integer", "1.5"]),
        ({"num_images": 0}, "num_images", ["0", "1 to 16"]),
        ({"sampler": "dopri5"}, "sampler", ["dopri5", "euler, heun"]),
        ({"output_format": "gif"}, "output_format", ["gif", "png, jpeg, webp"]),
        ({"quality": "best"}, "quality", ["'best'", "exact, balanced, fast"]),
        ({"quality": 3}, "quality", ["a string", "3"]),
        ({"priority": 101}, "priority", ["101", "-100 to 100"]),
        ({"priority": 0.5}, "priority", ["an integer", "0.5"]),
        ({"deadline_ms": 0}, "deadline_ms", ["0", "1 to"]),
        ({"deadline_ms": -5.0}, "deadline_ms", ["-5", "1 to"]),
        ({"deadline_ms": "soon"}, "deadline_ms", ["a finite number", "'soon'"]),
        ({"heigth": 32}, "heigth", ["heigth", "did you mean height"]),
        ({"query": "a cat"}, "query", ["query", "num_inference_steps"]),
    ],
)
def test_a_bad_field_is_named_with_value_and_limit(
    change: dict[str, Any], param: str, said: list[str]
) -> None:
    error = refusal(post(json.dumps({**GOOD, **change})))
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    for words in [param, *said]:
        assert words in error["message"]


@pytest.mark.parametrize("field", GOOD)
def test_a_missing_field_is_named(field: str) -> None:
    error = refusal(post(json.dumps({key: GOOD[key] for key in GOOD if key != field})))
    assert (error["param"], error["message"][: len(field)]) == (field, field)
    assert "required" in error["message"]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"", "not JSON"),
        (b"{", "not JSON"),
        (b'{"class": NaN}', "NaN"),
        (b'{"class": -Infinity}', "Infinity"),
        (b"[1]", "an array"),
        (b"null", "null"),
        (b'"text"', "a string"),
        (b"[" * 30_000, "nested"),
        (b'{"class": ' * 5_000, "nested"),
        (b'{"class": 1, "class": 2}', "twice"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "64 bits"),
        (b'{"class": "\\ud800"}', "surrogate"),
        (b'{"\\ud800": 1}', "surrogate"),
        (b"\xff\xfe{", "UTF-8"),
        (json.dumps(GOOD).encode("utf-16"), "UTF-8"),
        (b'{"class": 1, "height": 32, "width": 32, "guidance_scale": 1e999}', "inf"),
        (b'{"class": 1, "height": 1e999, "width": 32}', "inf"),
    ],
)
def test_a_body_that_is_no_request_says_why(body: bytes, said: str) -> None:
    assert said in refusal(post(body))["message"]


def test_a_body_that_is_too_long_is_refused_with_the_limit() -> None:
    error = refusal(post(json.dumps(GOOD) + " " * MAX_BODY_BYTES), 413)
    assert str(MAX_BODY_BYTES) in error["message"]
    filled = json.dumps(GOOD).ljust(MAX_BODY_BYTES)
    assert post(filled).status_code == 200


@pytest.mark.parametrize(
    "content_type", [None, "text/plain", "application/x-www-form-urlencoded", "json", "a/b/c"]
)
def test_a_body_not_declared_as_json_is_refused(content_type: str | None) -> None:
    headers = {} if content_type is None else {"content-type": content_type}
    answer = CLIENT.post("/generate", content=json.dumps(GOOD), headers=headers)
    assert "application/json" in refusal(answer, 415)["message"]


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "application/x+json"])
def test_json_by_any_of_its_names_is_taken(content_type: str) -> None:
    headers = {"content-type": content_type}
    assert CLIENT.post("/generate", content=json.dumps(GOOD), headers=headers).status_code == 200


@pytest.mark.parametrize(
    ("method", "path", "status", "kind"),
    [
        ("GET", "/nothing", 404, "not_found_error"),
        ("POST", "/generate/more", 404, "not_found_error"),
        ("GET", "/%ff%00" + "x" * 300, 404, "not_found_error"),
        ("GET", "/generate", 405, "invalid_request_error"),
        ("DELETE", "/health", 405, "invalid_request_error"),
    ],
)
def test_routes_that_are_none_answer_with_the_error_object(
    method: str, path: str, status: int, kind: str
) -> None:
    error = refusal(CLIENT.request(method, path), status)
    assert error["type"] == kind
    assert method in error["message"]


def test_a_bug_is_answered_with_the_error_object_and_no_detail(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FakeEngine()
    client = client_of(engine)

    def submit(*_: object) -> None:
        raise RuntimeError("secret")

    monkeypatch.setattr(engine, "submit", submit)
    error = refusal(client.post("/generate", json=GOOD), 500)
    assert error["type"] == "server_error"
    assert "secret" not in error["message"]


def test_refused_bodies_are_counted() -> None:
    client = client_of(FakeEngine())
    client.post("/generate", content=b"{", headers=JSON_HEADERS)
    client.post("/generate", content=b"{}")
    client.post("/generate", json={**GOOD, "class": "nonsense"})
    client.post("/generate", json={**GOOD, "height": 33})
    text = client.get("/metrics").text
    assert 'fit_requests_rejected_total{model_name="fake-fit",reason="invalid"} 4.0' in text


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(0, 300)
    | st.floats()
    | st.text()
    | st.sampled_from(["sunflower", "euler", "png", "64", "NaN"])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
FIELDS = st.sampled_from(
    [info.alias or name for name, info in GenerateBody.model_fields.items()] + ["Class", "n"]
)


@settings(max_examples=150, deadline=None)
@given(
    change=st.dictionaries(FIELDS, VALUES, max_size=3),
    removed=st.sets(FIELDS, max_size=1),
    as_ascii=st.booleans(),
)
def test_no_body_makes_the_server_fail(
    change: dict[str, Any], removed: set[str], as_ascii: bool
) -> None:
    before = len(ENGINE.submitted)
    body = {key: value for key, value in (GOOD | change).items() if key not in removed}
    text = json.dumps(body, ensure_ascii=as_ascii).encode("utf-8", "surrogatepass")
    answer = post(text)
    if answer.status_code == 200:
        assert len(ENGINE.submitted) > before
    else:
        refusal(answer)
        assert len(ENGINE.submitted) == before


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=200) | st.recursive(SCALARS, st.lists).map(json.dumps))
def test_no_bytes_make_the_server_fail(body: bytes | str) -> None:
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogatepass")
    refusal(post(body))
