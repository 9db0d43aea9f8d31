"""The engine: sequences in, latents denoised in one packed batch per step, pixels out."""

from fit_serve.engine.config import EngineConfig
from fit_serve.engine.handle import EngineHandle, EngineState

__all__ = ["EngineConfig", "EngineHandle", "EngineState"]
