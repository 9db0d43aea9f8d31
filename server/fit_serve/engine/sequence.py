"""One image in flight: what is to be evaluated, and how far it has come.

Knows its plan and its position; not tensors, neighbours, queues or clocks. The plan is made once,
from the request alone, so nothing that happens beside a sequence can change it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.sampler import Evaluation, make_trajectory
from fit_serve.request import NUM_SEEDS, SequenceRequest


@dataclass(eq=False)
class Sequence:
    """A request for one image, planned.

    Attributes:
        request: what was asked for; immutable.
        grid: (rows, columns) in tokens.
        evaluations: every network evaluation, in order.
        guidance_scales: scale of each evaluation; exactly 1 means one branch.
        start_noise: scale of noise added before the first evaluation.
        position: evaluations already done.
        submitted_s, started_s, finished_s: moments on the engine's clock; None before they come.
        is_cancelled: set from any thread, read by the engine at the next step.
    """

    request: SequenceRequest
    grid: tuple[int, int]
    evaluations: tuple[Evaluation, ...]
    guidance_scales: tuple[float, ...]
    start_noise: float = 0.0
    position: int = 0
    submitted_s: float = 0.0
    started_s: float | None = None
    finished_s: float | None = None
    is_cancelled: bool = field(default=False)

    @property
    def sequence_id(self) -> str:
        """Unique among all alive."""
        return self.request.sequence_id

    @property
    def num_tokens(self) -> int:
        """Tokens of one branch."""
        return self.grid[0] * self.grid[1]

    @property
    def num_branches(self) -> int:
        """Branches of the evaluation that comes next."""
        return 2 if self.guidance_scales[self.position] != 1.0 else 1

    @property
    def max_tokens(self) -> int:
        """Tokens of its most expensive remaining evaluation: what admission must reserve."""
        left = self.guidance_scales[self.position :]
        return self.num_tokens * (2 if any(scale != 1.0 for scale in left) else 1)

    @property
    def remaining_tokens(self) -> int:
        """Tokens of all evaluations still to come: the work it stands for."""
        left = self.guidance_scales[self.position :]
        return self.num_tokens * sum(2 if scale != 1.0 else 1 for scale in left)

    @property
    def is_finished(self) -> bool:
        """Whether every evaluation is done."""
        return self.position == len(self.evaluations)


def plan_sequence(request: SequenceRequest, pixels_per_token: int) -> Sequence:
    """Plan a request.

    Raises:
        ValueError: height or width is no multiple of a token's side, or seed, sampler or guidance
            is unknown or out of range.
    """
    for name, value in (("height", request.height), ("width", request.width)):
        if value < pixels_per_token or value % pixels_per_token:
            raise ValueError(f"{name} is {value}; it must be a multiple of {pixels_per_token}")
    if not 0 <= request.seed < NUM_SEEDS:
        raise ValueError(f"seed is {request.seed}; it must be in 0..{NUM_SEEDS - 1}")
    trajectory = make_trajectory(request.sampler, request.num_inference_steps)
    guidance = Guidance(request.guidance_scale, request.guidance_interval)
    return Sequence(
        request=request,
        grid=(request.height // pixels_per_token, request.width // pixels_per_token),
        evaluations=trajectory.evaluations,
        guidance_scales=tuple(guidance.scale_at(e.sigma) for e in trajectory.evaluations),
        start_noise=trajectory.start_noise,
    )
