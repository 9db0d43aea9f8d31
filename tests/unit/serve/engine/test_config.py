"""A config that cannot work is refused where it is made, by name and value."""

import pytest

from fit_serve.engine.config import BATCHING, CALIBRATION, EXECUTION, EngineConfig


@pytest.mark.parametrize(
    "name",
    [
        "max_num_batched_tokens",
        "max_num_seqs",
        "max_queued_requests",
        "max_state_bytes",
        "decode_workers",
        "rope_cache_tokens",
        "modulation_cache_rows",
    ],
)
@pytest.mark.parametrize("value", [0, -3])
def test_every_limit_is_at_least_one(name: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be at least 1"):
        EngineConfig(**{name: value})  # pyright: ignore[reportArgumentType]


def test_threads_are_not_negative() -> None:
    assert EngineConfig(num_threads=0).num_threads == 0  # torch's own choice
    with pytest.raises(ValueError, match="num_threads is -1; it must be at least 0"):
        EngineConfig(num_threads=-1)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_a_step_needs_time(value: float) -> None:
    with pytest.raises(ValueError, match=f"wedge_timeout_s is {value}; it must be above 0"):
        EngineConfig(wedge_timeout_s=value)


@pytest.mark.parametrize("buckets", [(0, 64), (64, 64), (128, 64)])
def test_buckets_increase(buckets: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="token_buckets"):
        EngineConfig(token_buckets=buckets)


@pytest.mark.parametrize(
    ("name", "known"),
    [("batching", BATCHING), ("calibration", CALIBRATION), ("execution", EXECUTION)],
)
def test_choices_have_names(name: str, known: tuple[str, ...]) -> None:
    for value in known:
        assert getattr(EngineConfig(**{name: value}), name) == value  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match=f"{name} 'guess' is unknown; known: {known[0]}, "):
        EngineConfig(**{name: "guess"})  # pyright: ignore[reportArgumentType]
