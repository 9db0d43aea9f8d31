"""A setting is written once: default, variable, flag, and a clear refusal of anything else."""

import os
from typing import get_args

import pytest

from fit_kernels.attention import ATTENTIONS
from fit_kernels.backend import BACKENDS
from fit_serve.settings import ENV_PREFIX, Settings, flag_of, load_settings


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for variable in list(os.environ):
        if variable.startswith(ENV_PREFIX):
            monkeypatch.delenv(variable)


def test_without_anything_the_defaults_hold() -> None:
    settings = load_settings({})
    assert (settings.model, settings.host, settings.port) == ("embedded", "127.0.0.1", 8000)
    assert settings.max_num_batched_tokens is None


def test_a_flag_wins_over_a_variable_and_a_variable_over_the_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("FIT_SERVE_MAX_NUM_SEQS", "7")
    assert load_settings({}).max_num_seqs == 7
    assert load_settings({"max_num_seqs": "9"}).max_num_seqs == 9


def test_an_empty_variable_is_not_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIT_SERVE_MAX_NUM_BATCHED_TOKENS", "")
    assert load_settings({}).max_num_batched_tokens is None


def test_buckets_are_a_list_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIT_SERVE_TOKEN_BUCKETS", "256,512,1024")
    assert load_settings({}).token_buckets == (256, 512, 1024)
    assert load_settings({"token_buckets": "64"}).token_buckets == (64,)


def test_adapters_are_a_list_with_commas_or_one_flag_each(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load_settings({}).adapters == ()
    monkeypatch.setenv("FIT_SERVE_ADAPTERS", "one/folder,another")
    assert load_settings({}).adapters == ("one/folder", "another")
    assert load_settings({"adapters": ["with,comma", "b"]}).adapters == ("with,comma", "b")
    assert flag_of("adapters") == "--adapter"


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("port", "http", "integer"),
        ("port", "70000", "65535"),
        ("device", "tpu", "'cuda'"),
        ("max_num_seqs", "0", "1"),
        ("token_buckets", "512,256", "rising"),
        ("token_buckets", "", "integer"),
        ("grace_time_s", "-1", "0"),
        ("request_timeout_s", "inf", "finite"),
        ("log_level", "loud", "'debug'"),
    ],
)
def test_a_bad_value_is_refused_in_one_line_with_flag_variable_and_limit(
    name: str, text: str, said: str
) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        load_settings({name: text})
    message = str(caught.value)
    for words in (flag_of(name), f"{ENV_PREFIX}{name.upper()}", repr(text)):
        assert words in message
    assert "\n" not in message


def test_a_variable_that_sets_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FIT_SERVE_MAX_NUM_SEQ", "7")
    with pytest.raises(ValueError, match="did you mean FIT_SERVE_MAX_NUM_SEQS"):
        load_settings({})


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_described(name: str) -> None:
    description = Settings.model_fields[name].description
    assert description
    assert description.endswith(".")


def test_every_form_of_the_kernels_can_be_asked_for() -> None:
    choices = {
        name: set(get_args(Settings.model_fields[name].annotation))
        for name in ("operators", "attention")
    }
    assert choices == {"operators": {"auto", *BACKENDS}, "attention": {"auto", *ATTENTIONS}}
