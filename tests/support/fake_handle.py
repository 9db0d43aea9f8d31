"""A bundle and an engine handle for the composition root, without network, device or thread."""

from dataclasses import dataclass, field
from types import SimpleNamespace

import torch

from fit_models.config import ModelConfig
from support.fake_engine import CLASS_NAMES, FakeEngine

BUNDLE = SimpleNamespace(
    name="tiny",
    device=torch.device("cpu"),
    dtype=torch.float32,
    class_names=CLASS_NAMES,
    text_encoder=None,
    model_config=ModelConfig(hidden_size=128, depth=2, num_heads=2, adaln_lora_dim=8),
    autoencoder=SimpleNamespace(downsampling=8),
    defaults=SimpleNamespace(
        num_inference_steps=11,
        guidance_scale=3.0,
        guidance_interval=(0.0, 0.8),
        sampler="euler",
    ),
)


@dataclass
class FakeHandle(FakeEngine):
    """A fake engine with the life of the real handle, which writes down what happens to it."""

    bundle: object = None
    config: object = None
    telemetry: object = None
    events: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()
        self.is_ready = False

    def start(self) -> None:
        self.events.append("start")
        self.is_ready = True

    def drain(self, timeout_s: float) -> None:
        self.events.append(f"drain {timeout_s}")
        self.is_ready = False

    def stop(self) -> None:
        self.events.append("stop")

    def state(self) -> SimpleNamespace:
        return SimpleNamespace(running=3, waiting=5)
