"""Laws of the runner: a sequence does not notice its neighbours, nor how it was packed."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fit_models.bundle import Bundle
from fit_models.diffusion.guidance import guide
from fit_models.diffusion.sampler import SAMPLERS
from fit_models.packing import layout_of_grids
from fit_serve.engine import runner as runner_module
from fit_serve.engine.config import EngineConfig
from fit_serve.engine.runner import Runner, StepReport
from fit_serve.engine.sequence import Sequence
from fit_serve.request import SequenceRequest
from support.sequences import planned, request_of, requests, sequence_of

ATOL = 1e-5


def advance(runner: Runner, sequences: list[Sequence]) -> StepReport:
    """One step, as the engine does it."""
    report = runner.run(sequences)
    for sequence in sequences:
        sequence.position += 1
    return report


def alone(bundle: Bundle, request: SequenceRequest, config: EngineConfig | None = None) -> Tensor:
    runner, sequence = Runner(bundle, config or EngineConfig()), planned(request)
    while not sequence.is_finished:
        advance(runner, [sequence])
    return runner.take(sequence)


def together(
    bundle: Bundle, requests: list[tuple[int, SequenceRequest]], config: EngineConfig | None = None
) -> list[Tensor]:
    """All in one runner; each begins at its step."""
    runner = Runner(bundle, config or EngineConfig())
    waiting = [(begins, planned(request)) for begins, request in requests]
    latents: dict[Sequence, Tensor] = {}
    number = 0
    while len(latents) < len(waiting):
        running = [s for begins, s in waiting if begins <= number and s not in latents]
        if running:
            advance(runner, running)
        latents |= {s: runner.take(s) for s in running if s.is_finished}
        number += 1
    return [latents[sequence] for _, sequence in waiting]


@torch.inference_mode()
def plain(bundle: Bundle, request: SequenceRequest) -> Tensor:
    """The same image by the book: no cache, no packing of others, one network call per branch."""
    network, sequence = bundle.network, planned(request)
    config = network.config
    layout = layout_of_grids([sequence.grid], config.head_dim, config.rope)
    generator = torch.Generator().manual_seed(request.seed)
    shape = (sequence.num_tokens, config.token_channels)
    x = torch.randn(shape, generator=generator)
    if sequence.start_noise:
        x = x + sequence.start_noise * torch.randn(shape, generator=generator)
    memory = torch.zeros(shape)
    for row, scale in zip(sequence.evaluations, sequence.guidance_scales, strict=True):
        timestep = torch.tensor([1.0 - row.sigma])
        v = network(x, layout, timestep, torch.tensor([request.class_label]))
        if scale != 1.0:
            null = network(x, layout, timestep, torch.tensor([config.null_label]))
            v = guide(v, null, torch.tensor([[scale]]), config.guided_token_channels)
        a, b, c, d, e, f, g = row.coefficients
        noise = torch.randn(shape, generator=generator) if d else torch.zeros(shape)
        x, memory = a * x + b * v + c * memory + d * noise, e * x + f * v + g * memory
    return x


def assert_close(latents: Tensor, others: Tensor) -> None:
    assert torch.isfinite(latents).all()
    torch.testing.assert_close(latents, others, rtol=ATOL, atol=ATOL)


@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
@pytest.mark.parametrize(("scale", "interval"), [(1.0, (0.0, 1.0)), (3.0, (0.3, 0.8))])
def test_a_sequence_runs_as_the_book_says(
    bundle: Bundle, sampler: str, scale: float, interval: tuple[float, float]
) -> None:
    request = request_of("a", (3, 5), 5, scale, interval, sampler)
    assert_close(alone(bundle, request), plain(bundle, request))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), requests(max_side=5)), min_size=2, max_size=6))
def test_neighbours_and_when_they_come_change_nothing(
    bundle: Bundle, traffic: list[tuple[int, SequenceRequest]]
) -> None:
    for latents, (_, request) in zip(together(bundle, traffic), traffic, strict=True):
        assert_close(latents, alone(bundle, request))


@settings(max_examples=8, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 3), requests(max_side=5)), min_size=1, max_size=5))
def test_padding_to_buckets_changes_nothing(
    bundle: Bundle, traffic: list[tuple[int, SequenceRequest]]
) -> None:
    padded = together(bundle, traffic, EngineConfig(token_buckets=(64, 128, 256)))
    for latents, others in zip(padded, together(bundle, traffic), strict=True):
        assert_close(latents, others)


def test_caches_smaller_than_a_step_change_nothing(bundle: Bundle) -> None:
    traffic = [
        (i, request_of(str(i), (2 + i, 3), 4, 2.0, sampler="heun", label=i)) for i in range(3)
    ]
    tiny = EngineConfig(rope_cache_tokens=1, modulation_cache_rows=1)
    for latents, others in zip(
        together(bundle, traffic, tiny), together(bundle, traffic), strict=True
    ):
        assert_close(latents, others)


def test_seed_class_scale_and_sampler_each_change_the_picture(bundle: Bundle) -> None:
    request = request_of()
    latents = alone(bundle, request)
    assert torch.equal(latents, alone(bundle, request))
    for change in (
        {"seed": 2},
        {"class_label": 0},
        {"guidance_scale": 1.0},
        {"guidance_interval": (0.0, 0.5)},
        {"sampler": "heun"},
        {"num_inference_steps": 5},
    ):
        other = alone(bundle, replace(request, **change))
        assert (latents - other).abs().max() > 1e-2, change


def test_neighbours_that_leave_in_the_middle_change_nothing(bundle: Bundle) -> None:
    """Noise is drawn at every step here: a draw for somebody else would be seen."""
    request = request_of("stays", (3, 3), 6, sampler="sde")
    runner, stays = Runner(bundle, EngineConfig()), planned(request)
    leaves = [planned(request_of(str(i), (3, 3), 6, seed=i, sampler="sde")) for i in range(3)]
    while not stays.is_finished:
        advance(runner, [*leaves, stays])
        if leaves:
            runner.forget([leaves.pop()])
    assert_close(runner.take(stays), alone(bundle, request))


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the memberships that were described."""
    counted: list[int] = []
    build = runner_module.build_batch

    def counting(sequences: list[Sequence], *args: object) -> object:
        counted.append(len(sequences))
        return build(sequences, *args)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(runner_module, "build_batch", counting)
    return counted


def test_a_membership_is_described_once(bundle: Bundle, builds: list[int]) -> None:
    runner = Runner(bundle, EngineConfig())
    a, b = sequence_of("a", (2, 3), steps=8), sequence_of("b", (3, 2), steps=4)
    for _ in range(4):
        advance(runner, [a, b])
    runner.take(b)
    while not a.is_finished:
        advance(runner, [a])
    assert builds == [2, 1]


def test_it_is_described_again_where_guidance_begins_and_ends(
    bundle: Bundle, builds: list[int]
) -> None:
    runner = Runner(bundle, EngineConfig())
    a = sequence_of("a", steps=8, interval=(0.3, 0.8))
    tokens = [advance(runner, [a]).real_tokens for _ in range(8)]
    assert tokens == [6, 6, 12, 12, 12, 12, 6, 6]
    assert builds == [1, 1, 1]


def test_the_report_counts_what_was_run(bundle: Bundle) -> None:
    runner = Runner(bundle, EngineConfig(token_buckets=(32, 64)))
    sequences = [
        sequence_of("a", (2, 3)),
        sequence_of("b", (2, 3), scale=1.0),
        sequence_of("c", (4, 4), scale=1.0),
    ]
    assert runner.run(sequences) == StepReport(
        real_tokens=12 + 6 + 16, padded_tokens=64, num_sequences=3, num_resolutions=2
    )


def test_nothing_is_kept_of_who_is_gone(bundle: Bundle) -> None:
    runner = Runner(bundle, EngineConfig())
    a, b, never_ran = sequence_of("a", steps=1), sequence_of("b"), sequence_of("c")
    advance(runner, [a, b])
    runner.take(a)
    runner.forget([b, never_ran])
    with pytest.raises(KeyError):
        runner.take(a)
    with pytest.raises(KeyError):
        runner.take(b)


def test_a_step_that_fails_leaves_the_others_state_alone(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    request = request_of("stays", (3, 4), 5, sampler="sde-heun")
    runner, stays = Runner(bundle, EngineConfig()), planned(request)
    advance(runner, [stays])
    victim = sequence_of("victim", (5, 5))
    with monkeypatch.context() as patch:
        patch.setattr(runner.network, "denoise", _out_of_memory)
        with pytest.raises(MemoryError):
            runner.run([stays, victim])
    runner.forget([victim])
    while not stays.is_finished:
        advance(runner, [stays])
    assert_close(runner.take(stays), alone(bundle, request))


def _out_of_memory(*args: object) -> Tensor:
    raise MemoryError
