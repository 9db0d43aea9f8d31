"""One image in flight: what is to be evaluated, and how far it has come.

Knows its plan and its position; not tensors, neighbours, queues or clocks. The plan is made once,
from the request alone, so nothing that happens beside a sequence can change it.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from fit_models.config import NAMED_CONFIGS
from fit_models.diffusion.guidance import Guidance
from fit_models.diffusion.sampler import Evaluation
from fit_models.diffusion.step_cache import extrapolation
from fit_models.families import (
    NetworkConfig,
    TableKey,
    family_of,
    guidance_scale_at,
    table_keys,
    trajectory_of,
)
from fit_serve.engine.caption import Caption
from fit_serve.engine.reuse_rule import ReuseRule
from fit_serve.engine.step_cache import StepCache
from fit_serve.engine.turn import Reuse, Turn
from fit_serve.request import NUM_SEEDS, SequenceRequest

_ANY_MODEL = NAMED_CONFIGS["FiTv2-toy/2"]


@dataclass(eq=False)
class Sequence:
    """A request for one image, planned.

    Attributes:
        request: what was asked for; immutable.
        grid: (rows, columns) in tokens.
        evaluations: every evaluation, in order.
        guidance_scales: scale of each evaluation; exactly 1 means one branch.
        tables: positions each evaluation reads, where they change with time; else empty.
        captions: of the conditional and the unconditional branch, once they are read, of networks
            that read any; the second is missing where no evaluation is guided.
        start_noise: scale of noise added before the first evaluation.
        rule: which evaluations do without the network; None: none of them.
        order: 1 extrapolates the prediction, 0 repeats it.
        position: evaluations already done, or handed to the device.
        turns: how many of them the network did.
        submitted_s, started_s, finished_s: moments on the engine's clock; None before they come.
        deadline_s: the moment after which nobody wants the picture; None: never.
        alone_s: predicted seconds on an idle engine.
        is_cancelled: set from any thread, read by the engine at the next step.
    """

    request: SequenceRequest
    grid: tuple[int, int]
    evaluations: tuple[Evaluation, ...]
    guidance_scales: tuple[float, ...]
    tables: tuple[TableKey, ...] = ()
    captions: tuple[Caption, ...] = ()
    start_noise: float = 0.0
    rule: ReuseRule | None = None
    order: int = 1
    position: int = 0
    turns: int = 0
    submitted_s: float = 0.0
    started_s: float | None = None
    finished_s: float | None = None
    deadline_s: float | None = None
    alone_s: float = 0.0
    is_cancelled: bool = field(default=False)
    _last_sigma: float | None = None
    _before_sigma: float | None = None

    @property
    def sequence_id(self) -> str:
        """Unique among all alive."""
        return self.request.sequence_id

    @property
    def num_tokens(self) -> int:
        """Tokens of one branch."""
        return self.grid[0] * self.grid[1]

    @property
    def table(self) -> TableKey:
        """Positions that the evaluation which comes next reads."""
        return self.tables[self.position] if self.tables else self.grid

    @property
    def prompts(self) -> tuple[str, ...]:
        """What `captions` are to be read from; none for a network that is told a class."""
        if self.request.prompt is None:
            return ()
        if all(scale == 1.0 for scale in self.guidance_scales):
            return (self.request.prompt,)
        return self.request.prompt, self.request.negative_prompt

    @property
    def num_branches(self) -> int:
        """Branches of the evaluation that comes next."""
        return self._branches_at(self.position)

    @property
    def next_tokens(self) -> int:
        """Tokens of the evaluation that comes next, both branches."""
        return self.num_tokens * self.num_branches

    @property
    def state_tokens(self) -> int:
        """Memory it holds while it runs, in tokens: state, sampler memory, and kept predictions."""
        return self.num_tokens * (2 if self.rule is None else 4)

    @property
    def max_tokens(self) -> int:
        """Tokens of its most expensive remaining evaluation."""
        return self.num_tokens * max(map(self._branches_at, self._computed_left()), default=1)

    @property
    def remaining_tokens(self) -> int:
        """Tokens of all evaluations the network may still be asked for: the work it stands for."""
        return self.num_tokens * sum(map(self._branches_at, self._computed_left()))

    @property
    def remaining_turns(self) -> int:
        """Engine steps it still takes, at most."""
        return len(self._computed_left())

    @property
    def is_finished(self) -> bool:
        """Whether every evaluation is done."""
        return self.position == len(self.evaluations)

    def next_turn(self) -> Turn:
        """What it does in the next step; the same until `advance`."""
        position = self.position
        if self.rule is None:
            return Turn(position, self.num_branches)
        sigma = self.evaluations[position].sigma
        before = self._before_in_line(position)
        reused = []
        for following in range(position + 1, position + 1 + self.rule.count(position, self.turns)):
            at = self.evaluations[following].sigma
            weights = (1.0, 0.0) if self.order == 0 else extrapolation(at, sigma, before)
            reused.append(Reuse(following, *weights))
        return Turn(position, self.num_branches, tuple(reused), sigma != self._last_sigma)

    def advance(self, turn: Turn) -> None:
        """Move past a turn."""
        if self.rule is not None:
            self._before_sigma = self._before_in_line(turn.position)
            self._last_sigma = self.evaluations[turn.position].sigma
        self.position = turn.end
        self.turns += 1

    def _before_in_line(self, position: int) -> float | None:
        """Noise level of the prediction that stands before that of `position`, if any does.

        Predictions made at another guidance scale are of another kind.
        """
        if position == 0 or self.guidance_scales[position - 1] != self.guidance_scales[position]:
            return None
        repeats = self.evaluations[position].sigma == self._last_sigma
        return self._before_sigma if repeats else self._last_sigma

    def _branches_at(self, position: int) -> int:
        return 2 if self.guidance_scales[position] != 1.0 else 1

    def _computed_left(self) -> list[int]:
        if self.rule is not None:
            return self.rule.computed_left(self.position)
        return list(range(self.position, len(self.evaluations)))


def plan_sequence(
    request: SequenceRequest,
    pixels_per_token: int,
    step_cache: StepCache | None = None,
    model: NetworkConfig = _ANY_MODEL,
) -> Sequence:
    """Plan a request.

    Args:
        request: what is asked for.
        pixels_per_token: side of a token.
        step_cache: what lower quality means; nothing is reused without.
        model: what the network is, for its sizes and samplers.

    Raises:
        ValueError: height or width is no multiple of a token's side or not for this network, or
            seed, sampler, guidance or quality is unknown or out of range.
    """
    for name, value in (("height", request.height), ("width", request.width)):
        if value < pixels_per_token or value % pixels_per_token:
            raise ValueError(f"{name} is {value}; it must be a multiple of {pixels_per_token}")
    if not 0 <= request.seed < NUM_SEEDS:
        raise ValueError(f"seed is {request.seed}; it must be in 0..{NUM_SEEDS - 1}")
    grid = (request.height // pixels_per_token, request.width // pixels_per_token)
    family_of(model).check_size(*grid, model)
    trajectory = trajectory_of(model, request.sampler, request.num_inference_steps)
    guidance = Guidance(request.guidance_scale, request.guidance_interval)
    scales = tuple(guidance_scale_at(model, guidance, e) for e in trajectory.evaluations)
    cache = step_cache or StepCache()
    return Sequence(
        request=request,
        grid=grid,
        evaluations=trajectory.evaluations,
        guidance_scales=scales,
        tables=table_keys(grid, model, trajectory),
        start_noise=trajectory.start_noise,
        rule=cache.rule_for(request.quality, trajectory, scales),
        order=cache.order,
    )
