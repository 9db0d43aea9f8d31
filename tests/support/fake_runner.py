"""A runner without a network, a listener that writes everything down, a clock that tests move."""

from collections import Counter, defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Items

import torch
from torch import Tensor

from fit_serve.engine.runner import StepReport
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import ServeError


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


class FakeRunner:
    """Runs nothing, but notices misuse: it knows whose state it would hold.

    `before_run(step number, sequences)` may raise or wait. `steps` lists who ran in each step that
    did not fail; `held` is whose state there is.
    """

    def __init__(
        self, before_run: Callable[[int, list[Sequence]], None] = lambda number, who: None
    ) -> None:
        self.before_run = before_run
        self.num_started = 0
        self.steps: list[list[Sequence]] = []
        self.held: set[Sequence] = set()

    def run(self, sequences: list[Sequence], /) -> StepReport:
        assert sequences, "an empty step"
        assert len(set(sequences)) == len(sequences), "a sequence twice in a step"
        assert not any(s.is_finished for s in sequences)
        self.num_started += 1
        self.held |= set(sequences)
        self.before_run(self.num_started, sequences)
        self.steps.append(list(sequences))
        tokens = sum(s.num_tokens * s.num_branches for s in sequences)
        return StepReport(tokens, tokens, len(sequences), len({s.grid for s in sequences}))

    def take(self, sequence: Sequence, /) -> Tensor:
        assert sequence.is_finished
        self.held.remove(sequence)
        return torch.empty(0)

    def forget(self, sequences: Items[Sequence], /) -> None:
        self.held -= set(sequences)


class RecordingListener:
    """Counts steps and keeps, per sequence, the positions told and every end (None is done)."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.positions: defaultdict[Sequence, list[int]] = defaultdict(list)
        self.ends: defaultdict[Sequence, list[ServeError | None]] = defaultdict(list)

    def on_step(self, report: StepReport, seconds: float) -> None:
        assert seconds >= 0
        self.num_steps += 1

    def on_progress(self, sequence: Sequence) -> None:
        self.positions[sequence].append(sequence.position)

    def on_denoised(self, sequence: Sequence, tokens: Tensor) -> None:
        self.ends[sequence].append(None)

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        self.ends[sequence].append(error)

    def counts(self) -> Counter[str]:
        """How many ended how: "done", or the class of the error."""
        ends = (end for told in self.ends.values() for end in told)
        return Counter("done" if end is None else type(end).__name__ for end in ends)
