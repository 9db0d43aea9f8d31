"""What is counted of every step: speed, for saying when to come back; and the metrics.

Knows reports and caches' counters; not sequences or queues. Called from the engine's thread.
"""

from __future__ import annotations

from fit_serve.engine.runner import Runner, StepReport
from fit_serve.telemetry import Telemetry

_MEMORY = 0.9  # share of the old speed in the new: the last ten steps or so count


class StepMeter:
    """Watches the steps of one runner.

    Attributes:
        tokens_per_s: real packed tokens, a moving mean; 0 before the first step.
    """

    def __init__(self, runner: Runner, telemetry: Telemetry | None) -> None:
        self.tokens_per_s = 0.0
        self._runner = runner
        self._telemetry = telemetry
        self._counted = (0, 0, 0, 0)

    def count(self, report: StepReport, seconds: float) -> None:
        """Count a step that took this long."""
        speed = report.real_tokens / max(seconds, 1e-9)
        before = self.tokens_per_s or speed
        self.tokens_per_s = _MEMORY * before + (1 - _MEMORY) * speed
        if self._telemetry is None:
            return
        self._telemetry.step_finished(
            report.real_tokens,
            report.padded_tokens,
            report.num_sequences,
            report.num_resolutions,
            seconds,
        )
        rope, modulation = self._runner.rope, self._runner.modulation
        now = (rope.hits, rope.misses, modulation.hits, modulation.misses)
        new = tuple(a - b for a, b in zip(now, self._counted, strict=True))
        self._counted = now
        self._telemetry.rope_cache(new[0], new[1], rope.num_bytes)
        self._telemetry.modulation_cache(new[2], new[3])
