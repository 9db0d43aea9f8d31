"""A runner without a network, a listener that writes everything down, a clock that tests move."""

from collections import Counter, defaultdict
from collections.abc import Callable
from collections.abc import Sequence as Items
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_serve.engine.packer import StepReport
from fit_serve.engine.runner import StepResult
from fit_serve.engine.sequence import Sequence
from fit_serve.engine.step_clock import StepClock
from fit_serve.errors import ServeError


class FakeClock:
    """Stands still until it is moved."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class FakeStep:
    """Who runs, who of them ends, and who is dropped before."""

    sequences: list[Sequence]
    finishing: list[Sequence]
    forgotten: list[Sequence]


class FakeRunner:
    """Runs nothing, but notices misuse: it knows whose state it would hold.

    `before_run(step number, sequences)` may raise or wait, in the thread that runs steps;
    `before_prepare` likewise in the loop's. `steps` lists who ran in each step that did not fail;
    `held` is whose state there is.
    """

    def __init__(
        self,
        before_run: Callable[[int, list[Sequence]], None] = lambda number, who: None,
        before_prepare: Callable[[int, list[Sequence]], None] = lambda number, who: None,
    ) -> None:
        self.before_run = before_run
        self.before_prepare = before_prepare
        self.num_started = self.num_prepared = 0
        self.steps: list[list[Sequence]] = []
        self.held: set[Sequence] = set()
        self._forgotten: list[Sequence] = []
        self._gone: set[Sequence] = set()

    def prepare(self, sequences: list[Sequence], /) -> FakeStep:
        assert sequences, "an empty step"
        assert len(set(sequences)) == len(sequences), "a sequence twice in a step"
        assert not any(s.is_finished for s in sequences)
        assert not self._gone & set(sequences), "planned after it was forgotten"
        self.num_prepared += 1
        self.before_prepare(self.num_prepared, sequences)
        finishing = [s for s in sequences if s.next_turn().end == len(s.evaluations)]
        forgotten, self._forgotten = self._forgotten, []
        return FakeStep(sequences, finishing, forgotten)

    def execute(self, step: FakeStep, /) -> StepResult:
        clock = StepClock(torch.device("cpu"))
        self.num_started += 1
        self.held -= set(step.forgotten)
        self.held |= set(step.sequences)
        self.before_run(self.num_started, step.sequences)
        self.steps.append(step.sequences)
        tokens = sum(s.num_tokens for s in step.sequences)
        grids = {s.grid for s in step.sequences}
        report = StepReport(tokens, tokens, len(step.sequences), len(grids))
        self.held -= set(step.finishing)
        clock.stop(torch.device("cpu"))
        return StepResult(report, {s: torch.empty(0) for s in step.finishing}, (), clock)

    def release(self) -> None:
        self.held -= set(self._forgotten)
        self._forgotten = []

    def forget(self, sequences: Items[Sequence], /) -> None:
        self._forgotten += sequences
        self._gone |= set(sequences)


class RecordingListener:
    """Counts steps and keeps, per sequence, the positions told and every end (None is done)."""

    def __init__(self) -> None:
        self.num_steps = 0
        self.positions: defaultdict[Sequence, list[int]] = defaultdict(list)
        self.ends: defaultdict[Sequence, list[ServeError | None]] = defaultdict(list)

    def on_step(self, report: StepReport, seconds: float) -> None:
        assert seconds >= 0
        self.num_steps += 1

    def on_progress(self, sequence: Sequence, position: int) -> None:
        self.positions[sequence].append(position)

    def on_denoised(self, sequence: Sequence, tokens: Tensor, clock: StepClock) -> None:
        self.ends[sequence].append(None)

    def on_failed(self, sequence: Sequence, error: ServeError) -> None:
        self.ends[sequence].append(error)

    def counts(self) -> Counter[str]:
        """How many ended how: "done", or the class of the error."""
        ends = (end for told in self.ends.values() for end in told)
        return Counter("done" if end is None else type(end).__name__ for end in ends)
