"""What a step may hold: the settings, else what was measured, else a guess."""

from types import SimpleNamespace
from typing import Any

import pytest

from fit_models.bundle import Bundle
from fit_serve.engine.budget import calibration_of, step_limits
from fit_serve.engine.config import EngineConfig

MEASURED: Any = SimpleNamespace(max_num_batched_tokens=777)


@pytest.mark.parametrize(
    ("setting", "measured", "tokens"),
    [(90, MEASURED, 90), (90, None, 90), (None, MEASURED, 777), (None, None, 1024)],
)
def test_tokens_are_the_settings_else_the_measured_else_a_guess(
    bundle: Bundle, setting: int | None, measured: Any, tokens: int
) -> None:
    config = EngineConfig(max_num_batched_tokens=setting, max_num_seqs=5)
    limits = step_limits(bundle, config, measured)
    assert (limits.tokens, limits.sequences) == (tokens, 5)


def test_bytes_of_state_become_tokens(bundle: Bundle) -> None:
    channels = bundle.model_config.token_channels
    limits = step_limits(bundle, EngineConfig(max_state_bytes=40 * channels), None)
    assert limits.state_tokens == 10


def test_nothing_is_measured_that_is_not_asked_for(bundle: Bundle) -> None:
    assert calibration_of(bundle, EngineConfig(calibration="off")) is None
