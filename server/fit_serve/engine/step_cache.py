"""The step cache's settings, and the rule they give a sequence.

Knows presets, trajectories and profiles; not tensors or steps of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from fit_models.diffusion.sampler import Trajectory
from fit_models.diffusion.step_cache import GENERIC_PROFILE, PredictionProfile, plan_evaluations
from fit_serve.engine.reuse_rule import ChangeReuse, PlannedReuse, ReuseRule
from fit_serve.quality import QUALITIES

RULES = ("plan", "change")


@dataclass(frozen=True)
class StepCache:
    """How evaluations are reused where a request's quality allows it.

    Attributes:
        rule: "plan" (made before the first step, from the profile) or "change" (watched).
        order: 1 extrapolates along the last two predictions, 0 repeats the last.
        profile: of the model that is served.
    """

    rule: str = "plan"
    order: int = 1
    profile: PredictionProfile = GENERIC_PROFILE

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise ValueError(f"step cache rule {self.rule!r} is unknown; known: {', '.join(RULES)}")
        if self.order not in (0, 1):
            raise ValueError(f"step cache order is {self.order}; it must be 0 or 1")

    def rule_for(
        self, quality: str, trajectory: Trajectory, guidance_scales: Sequence[float]
    ) -> ReuseRule | None:
        """The rule of a new sequence; None where every evaluation is computed.

        Predictions of samplers with fresh noise follow no line, so they are never reused.

        Raises:
            ValueError: the quality is unknown.
        """
        if quality not in QUALITIES:
            raise ValueError(f"quality {quality!r} is unknown; known: {', '.join(QUALITIES)}")
        preset, evaluations = QUALITIES[quality], trajectory.evaluations
        if not preset.reuses or any(e.needs_noise for e in evaluations):
            return None
        sigmas, scales = tuple(e.sigma for e in evaluations), tuple(guidance_scales)
        if self.rule == "change":
            return ChangeReuse(sigmas, scales, preset.change)
        weights = tuple(abs(e.coefficients[1]) + abs(e.coefficients[5]) for e in evaluations)
        computed = plan_evaluations(
            sigmas, weights, scales, preset.computed_share, self.order, self.profile
        )
        return None if all(computed) else PlannedReuse(computed)
