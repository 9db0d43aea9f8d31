"""When everybody will be done: the scheduler's choice played forward with predicted step times.

Pure: jobs and a cost model in, moments out. Between two ends nothing changes who runs, so it is
played from end to end, not step by step.
"""

from __future__ import annotations

from collections.abc import Sequence as Items
from dataclasses import dataclass

from fit_serve.engine.batching import StepLimits
from fit_serve.engine.cost_model import CostModel


@dataclass(frozen=True)
class Job:
    """What is left of one sequence.

    Attributes:
        moment: its place in the line, see `Order`.
        length: tokens of a branch.
        branches: of a step, on average over what is left.
        turns: steps it still takes.
    """

    moment: float
    length: int
    branches: float
    turns: int

    @property
    def tokens(self) -> float:
        """Of one step."""
        return self.length * self.branches


def seconds_until_done(jobs: Items[Job], limits: StepLimits, cost_model: CostModel) -> list[float]:
    """Seconds from now until each job has left the step loop, in the order of `jobs`."""
    line = sorted(range(len(jobs)), key=lambda i: (jobs[i].moment, i))
    left = [job.turns for job in jobs]
    done = [0.0] * len(jobs)
    now = 0.0
    line = [i for i in line if left[i] > 0]
    while line:
        running = _fill(line, jobs, limits)
        step = step_seconds([jobs[i] for i in running], cost_model)
        turns = min(left[i] for i in running)
        now += turns * step
        for i in running:
            left[i] -= turns
            if not left[i]:
                done[i] = now
        line = [i for i in line if left[i]]
    return done


def step_seconds(jobs: Items[Job], cost_model: CostModel) -> float:
    """Predicted seconds of a step of these jobs."""
    lengths = [job.length for job in jobs for _ in range(round(job.branches))]
    return cost_model.step_seconds(lengths)


def _fill(line: Items[int], jobs: Items[Job], limits: StepLimits) -> list[int]:
    """As `batching.packed` does."""
    chosen: list[int] = []
    tokens = 0.0
    for i in line:
        if len(chosen) == limits.sequences:
            break
        if not chosen or tokens + jobs[i].tokens <= limits.tokens:
            chosen.append(i)
            tokens += jobs[i].tokens
    return chosen
