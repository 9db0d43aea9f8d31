"""What a run of post-training is: the settings of any run, and those of its method.

Knows names, defaults and limits; opens no model and makes no network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from fit_training.loop.config import RunConfig, at_least, one_of

FULL, HIGH_RESOLUTION, LORA, FEW_STEP = "full", "high-resolution", "lora", "few-step"
METHODS = (FULL, HIGH_RESOLUTION, LORA, FEW_STEP)


@dataclass(frozen=True)
class PostTrainConfig(RunConfig):
    """A run of `fit-serve post-train`: from the weights of a bundle.

    Attributes:
        base: "embedded" or the folder of a bundle. `data` is prepared with its autoencoder, or with
            one of the same raw latents.
        method: "full" (goes on with every weight), "high-resolution" (FiTv2 §3.4: larger pictures),
            "lora" (an adapter, also for new classes) or "few-step" (a student of few steps without
            guidance).
        name: of the model that comes out; the base's and the method if empty.
        trained_length: tokens an axis beyond which high resolution stretches rotary frequencies; 0
            is what the base says.
        freeze: high resolution trains the paper's 14 % of the weights; otherwise all.
        restart: high resolution begins with fresh weights where it trains, as the released code;
            with `freeze` only.
        lora_rank: of the adapter's matrices.
        lora_alpha: the adapter counts lora_alpha / lora_rank times.
        student_steps: Euler steps of the student, K.
        teacher_steps: Euler steps of the teacher on each of the student's.
        guidance_scale: of the teacher; 0 is the base's default.
        on_policy_share: of the images, those on which the student is taught where its own steps
            have led it, not where noise and photograph mix; the first step is the same for both.
    """

    base: str = field(kw_only=True)
    method: str = field(kw_only=True)
    name: str = ""
    num_steps: int = 1000
    learning_rate: float = 2e-4
    warmup_steps: int = 50
    decay_steps: int = 300
    optimizer: str = "adamw"
    weight_decay: float = 0.0
    alignment_weight: float = 0.0
    alignment_block: int = 1
    ema_decay: float = 0.998
    trained_length: int = 0
    freeze: bool = True
    restart: bool = False
    lora_rank: int = 16
    lora_alpha: float = 16.0
    student_steps: int = 4
    teacher_steps: int = 3
    guidance_scale: float = 0.0
    on_policy_share: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("method", self.method, METHODS)
        for name in ("lora_rank", "student_steps", "teacher_steps"):
            at_least(name, getattr(self, name), 1)
        for name in ("trained_length", "guidance_scale"):
            at_least(name, getattr(self, name), 0)
        for name in ("lora_alpha", "guidance_scale"):
            if not math.isfinite(getattr(self, name)):
                raise ValueError(f"{name} is {getattr(self, name)}; it must be finite")
        if self.restart and not self.freeze:
            raise ValueError(
                "restart is true and freeze is false; nothing of the base would be left"
            )
        if not 0.0 <= self.on_policy_share <= 1.0:
            raise ValueError(f"on_policy_share is {self.on_policy_share}; it must be in 0..1")
