"""Requests and sequences of a few tokens, by hand and by hypothesis."""

from collections.abc import Callable, Iterable, Iterator

from hypothesis import strategies as st

from fit_models.config import NAMED_CONFIGS
from fit_models.diffusion.sampler import SAMPLERS
from fit_models.families import NetworkConfig
from fit_serve.engine.sequence import Sequence, plan_sequence
from fit_serve.engine.step_cache import StepCache
from fit_serve.engine.turn import Turn
from fit_serve.quality import QUALITIES
from fit_serve.request import SequenceRequest

PIXELS_PER_TOKEN = 16  # of the toy bundle


def request_of(
    sequence_id: str = "a",
    grid: tuple[int, int] = (2, 3),
    steps: int = 4,
    scale: float = 2.0,
    interval: tuple[float, float] = (0.0, 1.0),
    sampler: str = "euler",
    seed: int = 1,
    label: int = 1,
    quality: str = "exact",
    priority: int = 0,
    deadline_s: float | None = None,
    prompt: str | None = None,
    negative_prompt: str = "",
) -> SequenceRequest:
    rows, columns = grid
    return SequenceRequest(
        sequence_id=sequence_id,
        class_label=label if prompt is None else None,
        height=rows * PIXELS_PER_TOKEN,
        width=columns * PIXELS_PER_TOKEN,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_interval=interval,
        sampler=sampler,
        quality=quality,
        priority=priority,
        deadline_s=deadline_s,
        prompt=prompt,
        negative_prompt=negative_prompt,
    )


def planned(
    request: SequenceRequest,
    step_cache: StepCache | None = None,
    model: NetworkConfig = NAMED_CONFIGS["FiTv2-toy/2"],
) -> Sequence:
    return plan_sequence(request, PIXELS_PER_TOKEN, step_cache, model)


def sequence_of(
    sequence_id: str = "a",
    grid: tuple[int, int] = (2, 3),
    steps: int = 4,
    scale: float = 2.0,
    interval: tuple[float, float] = (0.0, 1.0),
    quality: str = "exact",
    priority: int = 0,
    submitted_s: float = 0.0,
) -> Sequence:
    request = request_of(
        sequence_id, grid, steps, scale, interval, quality=quality, priority=priority
    )
    sequence = planned(request)
    sequence.submitted_s = submitted_s
    return sequence


def requests(
    max_side: int = 6, max_steps: int = 6, qualities: Iterable[str] = QUALITIES
) -> st.SearchStrategy[SequenceRequest]:
    """Anything that may be asked for, but without priority and deadline; all ids are the same."""
    sides = st.integers(1, max_side)
    low = st.sampled_from((0.0, 0.2, 0.5))
    return st.builds(
        request_of,
        grid=st.tuples(sides, sides),
        steps=st.integers(1, max_steps),
        scale=st.sampled_from((1.0, 1.5, 4.0)),
        interval=st.tuples(low, st.sampled_from((0.5, 0.7, 1.0))),
        sampler=st.sampled_from(sorted(SAMPLERS)),
        seed=st.integers(0, 99),
        label=st.integers(0, 2),
        quality=st.sampled_from(sorted(qualities)),
    )


def turns_of(sequence: Sequence, change: Callable[[int], float] | None = None) -> Iterator[Turn]:
    """Run a sequence to its end, turn by turn; a rule that watches is told `change(turn)`.

    What a turn changed is told two turns later at the latest, as in an engine that plans ahead.
    """
    while not sequence.is_finished:
        turn = sequence.next_turn()
        assert turn == sequence.next_turn()
        sequence.advance(turn)
        if change is not None and sequence.rule is not None and sequence.rule.watches:
            sequence.rule.observe(sequence.turns - 1, change(sequence.turns - 1))
        yield turn
