"""A runner without an engine: one step, one sequence, a whole traffic; and pictures by the book."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.diffusion.discrete_sampler import DiscreteEvaluation
from fit_models.diffusion.guidance import guide
from fit_models.families import TextNetwork, family_of, position_tables
from fit_models.positions import layout_of_tables
from fit_serve.engine.caption import Caption
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


def read(bundle: Bundle, sequence: Sequence) -> Sequence:
    """Give a sequence its captions, if its network reads any, without a reader or a cache."""
    encoder = bundle.text_encoder
    if encoder is not None:
        sequence.captions = tuple(Caption(p, encoder.encode(p)) for p in sequence.prompts)
    return sequence


def alone(
    bundle: Bundle,
    request: SequenceRequest,
    config: EngineConfig | None = None,
    step_cache: StepCache | None = None,
) -> Tensor:
    return finish(
        Runner(bundle, config or EngineConfig()),
        read(bundle, planned(request, step_cache, bundle.model_config)),
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
    everybody = [
        (visit, read(bundle, planned(visit.request, step_cache, model))) for visit in visits
    ]
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
    config = bundle.model_config
    sequence = planned(request, step_cache, config)
    sequence.rule = rule or sequence.rule
    predict = _network_alone(bundle, sequence)
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
            out = predict(x, timestep, 0)
            v, variance = out[:, : shape[1]], out[:, shape[1] :]
            if scale != 1.0:
                null = predict(x, timestep, 1)[:, : shape[1]]
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


def _network_alone(bundle: Bundle, sequence: Sequence) -> Callable[[Tensor, Tensor, int], Tensor]:
    """(state, timestep [1], branch) to a prediction: positions and captions made anew each time."""
    config, request = bundle.model_config, sequence.request
    encoder = bundle.text_encoder
    if encoder is None:
        network = bundle.class_network("this loop")
        layout = layout_of_tables([sequence.grid], lambda r, c: position_tables(r, c, config))
        labels = (request.class_label, network.config.null_label)
        return lambda x, time, branch: network(x, layout, time, torch.tensor([labels[branch]]))
    text_network = bundle.network
    assert isinstance(text_network, TextNetwork)
    scaling_at = family_of(config).scaling_at

    def predict(x: Tensor, time: Tensor, branch: int) -> Tensor:
        scaling = scaling_at and scaling_at(*sequence.grid, config, float(time))
        layout = layout_of_tables(
            [sequence.grid], lambda r, c: position_tables(r, c, config, scaling)
        )
        features = encoder.encode((request.prompt or "", request.negative_prompt)[branch])
        captions = text_network.caption_states(features, [len(features)])
        return text_network(x, layout, time, captions)

    return predict


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
