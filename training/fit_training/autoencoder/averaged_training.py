"""A network in training with the moving average of its weights, its optimizer and its checkpoint.

Knows steps and gradients. Knows nothing of data or losses.
"""

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

MAX_GRADIENT_NORM = 1.0


@dataclass(frozen=True)
class TrainingPlan:
    """How long a network learns and how fast: AdamW under a half cosine after a linear warm-up.

    `average` is the decay of the moving average of weights; 0 steps leave a network as it is.
    Raises `ValueError` for numbers out of range.
    """

    steps: int
    learning_rate: float = 2e-3
    warmup_steps: int = 200
    average: float = 0.998
    weight_decay: float = 1e-4

    def __post_init__(self) -> None:
        if self.steps < 0:
            raise ValueError(f"steps: {self.steps} is less than 0")
        for name in ("learning_rate", "warmup_steps"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name}: {getattr(self, name)} is not above 0")
        if not 0 <= self.average < 1:
            raise ValueError(f"average: {self.average} is not in [0, 1)")

    def learning_rate_at(self, step: int) -> float:
        """Return the learning rate of a step, counted from 0; it ends at 0."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        progress = min(1.0, step / self.steps)
        return self.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * progress))


class AveragedTraining:
    """A network in training: its weights, their moving average, the optimizer and the step.

    Goes on where the checkpoint at `path` stopped, if there is one; raises `ValueError` if that one
    is of another network.
    """

    def __init__(self, name: str, network: nn.Module, plan: TrainingPlan, path: Path) -> None:
        self.name, self.network, self.plan, self.path = name, network, plan, path
        self.step = 0
        self.average = {key: value.clone() for key, value in network.state_dict().items()}
        self.optimizer = torch.optim.AdamW(
            network.parameters(),
            lr=plan.learning_rate,
            betas=(0.9, 0.99),
            weight_decay=plan.weight_decay,
            fused=True,
        )
        if path.exists():
            self._load()

    @property
    def finished(self) -> bool:
        """Whether all steps are done."""
        return self.step >= self.plan.steps

    def advance(self, loss: Tensor) -> None:
        """Take one step down the gradient of `loss`, and move the average towards the weights."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate_at(self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), MAX_GRADIENT_NORM)
        self.optimizer.step()
        self.step += 1
        decay = min(self.plan.average, (1 + self.step) / (10 + self.step))
        for key, value in self.network.state_dict().items():
            self.average[key].lerp_(value, 1 - decay)

    def save(self) -> None:
        """Write what going on needs, in one move."""
        state = {
            "step": self.step,
            "network": self.network.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        torch.save(state, partial)
        partial.replace(self.path)

    def _load(self) -> None:
        state = torch.load(self.path, map_location="cpu", weights_only=True)
        try:
            self.network.load_state_dict(state["network"])
        except RuntimeError as error:
            raise ValueError(f"checkpoint: {self.path} is of another network: {error}") from error
        self.optimizer.load_state_dict(state["optimizer"])
        for key, value in state["average"].items():
            self.average[key].copy_(value)
        self.step = state["step"]
