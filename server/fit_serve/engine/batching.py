"""Who of a line may share the next step: ours, and what other servers do, for comparison.

Every function gets the line (earliest first), who has begun, and the limits of a step, and returns
who runs in it. The first in a step always may, however large it is.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass
from types import MappingProxyType

from fit_serve.engine.sequence import Sequence

_MISSES = 64  # sequences in a row that do not fit before the search for a small one ends


@dataclass(frozen=True)
class StepLimits:
    """What one step may hold.

    Attributes:
        tokens: of all branches.
        sequences: a guided one counts once.
        state_tokens: of everybody who has begun, see `Sequence.state_tokens`; it keeps newcomers
            out, and lets those who have begun run on.
    """

    tokens: int
    sequences: int
    state_tokens: int


Batching = Callable[[Items[Sequence], Collection[Sequence], StepLimits], list[Sequence]]


def packed(
    line: Items[Sequence], begun: Collection[Sequence], limits: StepLimits
) -> list[Sequence]:
    """Everybody who fits, earliest first: size, steps, guidance and sampler decide nothing.

    Who is too large for what is left is passed over in this step only; the line is gone through
    anew in the next one, so a smaller, later one never delays it.
    """
    return _fill(line, begun, limits)


def serial(
    line: Items[Sequence], begun: Collection[Sequence], limits: StepLimits
) -> list[Sequence]:
    """One after another."""
    return _anchor(line, begun)


def equal_shape_step(
    line: Items[Sequence], begun: Collection[Sequence], limits: StepLimits
) -> list[Sequence]:
    """Those of one size share a step; others of that size join at any step."""
    (anchor,) = _anchor(line, begun)
    return _fill([s for s in line if s.grid == anchor.grid], begun, limits)


def equal_shape_dynamic(
    line: Items[Sequence], begun: Collection[Sequence], limits: StepLimits
) -> list[Sequence]:
    """Those of one size, with equal steps and guidance, begin together and end together.

    They are as many as fit at their most expensive evaluation.
    """
    running = [s for s in line if s in begun]
    if running:
        return running
    anchor = line[0]
    return _fill(
        [
            s
            for s in line
            if s.grid == anchor.grid
            and s.evaluations == anchor.evaluations
            and s.guidance_scales == anchor.guidance_scales
        ],
        begun,
        limits,
        lambda s: s.max_tokens,
    )


def padded_mixed(
    line: Items[Sequence], begun: Collection[Sequence], limits: StepLimits
) -> list[Sequence]:
    """Any sizes, each padded to the longest in the step: the budget holds the padding too."""
    chosen: list[Sequence] = []
    longest = branches = 0
    for sequence in _allowed(line, begun, limits):
        if len(chosen) == limits.sequences:
            break
        new_longest = max(longest, sequence.num_tokens)
        new_branches = branches + sequence.num_branches
        if chosen and new_longest * new_branches > limits.tokens:
            continue
        chosen.append(sequence)
        longest, branches = new_longest, new_branches
    return chosen


BATCHINGS: Mapping[str, Batching] = MappingProxyType(
    {
        "packed": packed,
        "serial": serial,
        "equal-shape-step": equal_shape_step,
        "equal-shape-dynamic": equal_shape_dynamic,
        "padded-mixed": padded_mixed,
    }
)


def _fill(
    line: Iterable[Sequence],
    begun: Collection[Sequence],
    limits: StepLimits,
    needs: Callable[[Sequence], int] = lambda s: s.next_tokens,
) -> list[Sequence]:
    chosen: list[Sequence] = []
    tokens = misses = 0
    for sequence in _allowed(line, begun, limits):
        if len(chosen) == limits.sequences or misses == _MISSES:
            break
        needed = needs(sequence)
        if chosen and tokens + needed > limits.tokens:
            misses += 1
            continue
        chosen.append(sequence)
        tokens += needed
        misses = 0
    return chosen


def _allowed(
    line: Iterable[Sequence], begun: Collection[Sequence], limits: StepLimits
) -> Iterable[Sequence]:
    """Those whose state has room; if nobody has begun, the first has it whatever it takes.

    Behind one who finds none nobody begins, however small: room that is given back is kept for it.
    """
    held = sum(s.state_tokens for s in begun)
    is_full = False
    for sequence in line:
        if sequence not in begun:
            is_full = is_full or (held > 0 and held + sequence.state_tokens > limits.state_tokens)
            if is_full:
                continue
            held += sequence.state_tokens
        yield sequence


def _anchor(line: Items[Sequence], begun: Collection[Sequence]) -> list[Sequence]:
    """The earliest who has begun, else the earliest."""
    return [next((s for s in line if s in begun), line[0])]
