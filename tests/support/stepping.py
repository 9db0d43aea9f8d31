"""A runner without an engine: one step, one sequence, a whole traffic; and pictures by the book."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.diffusion.discrete_sampler import DiscreteEvaluation
from fit_models.diffusion.guidance import guide
from fit_models.families import position_tables
from fit_models.positions import layout_of_tables
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.reuse_rule import ReuseRule
from fit_serve.engine.runner import Runner, StepResult
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_cache import StepCache
from fit_serve.request import SequenceRequest
from support.sequences import planned


@dataclass(frozen=True)
class Visit:
    """A request, the step at which it begins, and steps in which it sits out."""

    request: SequenceRequest
    begins: int = 0
    sits_out: frozenset[int] = field(default_factory=frozenset)


def step(runner: Runner, sequences: list[Sequence]) -> StepResult:
    """One step, as the plain loop does it."""
    turns = {sequence: sequence.next_turn() for sequence in sequences}
    result = runner.execute(runner.prepare(sequences))
    for sequence, turn in turns.items():
        sequence.advance(turn)
    for sequence, number, change in result.changes:
        assert sequence.rule is not None
        sequence.rule.observe(number, float(change))
    runner.forget(list(result.finished))
    return result


def finish(runner: Runner, sequence: Sequence, beside: Iterable[Sequence] = ()) -> Tensor:
    """Run a sequence to its end beside others, as long as those go on; returns its latent."""
    while True:
        others = [s for s in beside if not s.is_finished]
        result = step(runner, [*others, sequence])
        if sequence.is_finished:
            return result.finished[sequence]


def alone(
    bundle: Bundle,
    request: SequenceRequest,
    config: EngineConfig | None = None,
    step_cache: StepCache | None = None,
) -> Tensor:
    return finish(
        Runner(bundle, config or EngineConfig()), planned(request, step_cache, bundle.model_config)
    )


def together(
    bundle: Bundle,
    visits: list[Visit],
    config: EngineConfig | None = None,
    step_cache: StepCache | None = None,
) -> list[Tensor]:
    """All in one runner."""
    runner = Runner(bundle, config or EngineConfig())
    model = bundle.model_config
    everybody = [(visit, planned(visit.request, step_cache, model)) for visit in visits]
    latents: dict[Sequence, Tensor] = {}
    number = 0
    while len(latents) < len(everybody):
        running = [
            sequence
            for visit, sequence in everybody
            if visit.begins <= number and number not in visit.sits_out and not sequence.is_finished
        ]
        if running:
            latents |= step(runner, running).finished
        number += 1
    return [latents[sequence] for _, sequence in everybody]


@torch.inference_mode()
def by_the_book(
    bundle: Bundle,
    request: SequenceRequest,
    step_cache: StepCache | None = None,
    rule: ReuseRule | None = None,
) -> Tensor:
    """No cache, no packing, one network call per branch; what is reused is read off a line.

    `rule` takes the place of the one that the step cache gives.
    """
    network, config = bundle.network, bundle.model_config
    sequence = planned(request, step_cache, config)
    sequence.rule = rule or sequence.rule
    layout = layout_of_tables([sequence.grid], lambda r, c: position_tables(r, c, config))
    generator = torch.Generator().manual_seed(request.seed)
    shape = (sequence.num_tokens, config.token_channels)
    x = torch.randn(shape, generator=generator)
    if sequence.start_noise:
        x = x + sequence.start_noise * torch.randn(shape, generator=generator)
    memory = torch.zeros(shape)
    line = _Line(sequence.order)
    reuses, turn, variance = 0, -1, torch.empty(0)
    for index, (row, scale) in enumerate(
        zip(sequence.evaluations, sequence.guidance_scales, strict=True)
    ):
        if reuses:
            reuses -= 1
            v = line.at(row.sigma)
        else:
            turn += 1
            timestep = torch.tensor([row.network_timestep])
            out = network(x, layout, timestep, torch.tensor([request.class_label]))
            v, variance = out[:, : shape[1]], out[:, shape[1] :]
            if scale != 1.0:
                null = network(x, layout, timestep, torch.tensor([config.null_label]))
                null = null[:, : shape[1]]
                v = guide(v, null, torch.tensor([[scale]]), config.guided_token_channels)
            change = line.add(row.sigma, scale, v)
            if sequence.rule is not None:
                reuses = sequence.rule.count(index, turn)
                sequence.rule.observe(turn, change)
        a, b, c, d, e, f, g = row.coefficients
        noise = torch.randn(shape, generator=generator) if d else torch.zeros(shape)
        if isinstance(row, DiscreteEvaluation) and row.log_variance_range is not None:
            low, high = row.log_variance_range
            share = (variance + 1) / 2
            noise = noise * torch.exp((share * high + (1 - share) * low) / 2)
        x, memory = a * x + b * v + c * memory + d * noise, e * x + f * v + g * memory
    return x


class _Line:
    """All guided predictions of the present scale, and the line through those of two levels."""

    def __init__(self, order: int) -> None:
        self._order = order
        self._scale: float | None = None
        self._known: list[tuple[float, Tensor]] = []
        self._newest: Tensor | None = None

    def add(self, sigma: float, scale: float, v: Tensor) -> float:
        """Returns by how much the prediction has changed since the last one, relatively."""
        change = 0.0
        if self._newest is not None:
            change = float((v - self._newest).abs().mean() / self._newest.abs().mean())
        if scale != self._scale:
            self._known, self._scale = [], scale
        if self._known and self._known[-1][0] == sigma:
            self._known.pop()
        self._known.append((sigma, v))
        self._newest = v
        return change

    def at(self, sigma: float) -> Tensor:
        level, v = self._known[-1]
        if self._order == 0 or len(self._known) == 1:
            return v
        earlier, w = self._known[-2]
        return v + (v - w) * ((sigma - level) / (level - earlier))


def assert_close(latent: Tensor, other: Tensor, atol: float = 1e-5) -> None:
    assert torch.isfinite(latent).all()
    torch.testing.assert_close(latent, other, rtol=atol, atol=atol)
