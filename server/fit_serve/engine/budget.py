"""What a step may hold: from the settings, from what was measured, else from a guess."""

from __future__ import annotations

from fit_models.bundle import Bundle
from fit_serve.engine.batching import StepLimits
from fit_serve.engine.calibration import Calibration
from fit_serve.engine.calibration_store import key_of, load, load_or_calibrate
from fit_serve.engine.config import EngineConfig

# Past these a larger step only makes everyone wait (benchmarks/bench_step.py; the GPU's: a guess).
_CPU_TOKENS, _GPU_TOKENS = 1024, 16_384
_SECONDS = {"cpu": 10.0, "cuda": 20.0}  # of measuring at a start
_BYTES = 4  # of a value of a sequence's state


def calibration_of(bundle: Bundle, config: EngineConfig) -> Calibration | None:
    """What was measured for this bundle on this device, as far as the settings ask for it."""
    if config.calibration == "off":
        return None
    if config.calibration == "stored":
        return load(key_of(bundle, config.num_threads))
    return load_or_calibrate(bundle, config.num_threads, _SECONDS[bundle.device.type])


def step_limits(
    bundle: Bundle, config: EngineConfig, calibration: Calibration | None
) -> StepLimits:
    """Tokens and sequences of a step, and state of those who have begun."""
    tokens = config.max_num_batched_tokens
    if tokens is None and calibration is not None:
        tokens = calibration.max_num_batched_tokens
    if tokens is None:
        tokens = _CPU_TOKENS if bundle.device.type == "cpu" else _GPU_TOKENS
    return StepLimits(
        tokens=tokens,
        sequences=config.max_num_seqs,
        state_tokens=config.max_state_bytes // (_BYTES * bundle.model_config.token_channels),
    )
