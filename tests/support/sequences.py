"""Requests and sequences of a few tokens, by hand and by hypothesis."""

from hypothesis import strategies as st

from fit_models.diffusion.sampler import SAMPLERS
from fit_serve.engine.sequence import Sequence, plan_sequence
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
) -> SequenceRequest:
    rows, columns = grid
    return SequenceRequest(
        sequence_id=sequence_id,
        class_label=label,
        height=rows * PIXELS_PER_TOKEN,
        width=columns * PIXELS_PER_TOKEN,
        seed=seed,
        num_inference_steps=steps,
        guidance_scale=scale,
        guidance_interval=interval,
        sampler=sampler,
    )


def planned(request: SequenceRequest) -> Sequence:
    return plan_sequence(request, PIXELS_PER_TOKEN)


def sequence_of(
    sequence_id: str = "a",
    grid: tuple[int, int] = (2, 3),
    steps: int = 4,
    scale: float = 2.0,
    interval: tuple[float, float] = (0.0, 1.0),
) -> Sequence:
    return planned(request_of(sequence_id, grid, steps, scale, interval))


def requests(max_side: int = 6, max_steps: int = 6) -> st.SearchStrategy[SequenceRequest]:
    """Anything that may be asked for; all ids are the same, see `numbered`."""
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
    )
