"""What is counted of every step and every decoding: speed, for predictions; and the metrics.

Knows reports and caches' counters; not queues. Steps are counted from the engine's thread.
"""

from __future__ import annotations

from fit_serve.engine.cost_model import CostModel
from fit_serve.engine.packer import StepReport
from fit_serve.engine.runner import Runner
from fit_serve.engine.sequence import Sequence
from fit_serve.telemetry import Telemetry

_MEMORY = 0.9  # share of the old speed in the new: the last ten steps or so count


class StepMeter:
    """Watches the steps of one runner.

    Attributes:
        tokens_per_s: real packed tokens, a moving mean; 0 before the first step.
        decode_s_per_token: of a finished picture, a moving mean; 0 before the first.
    """

    def __init__(self, runner: Runner, telemetry: Telemetry | None) -> None:
        self.tokens_per_s = self.decode_s_per_token = 0.0
        self._runner = runner
        self._telemetry = telemetry
        self._counted = (0, 0, 0, 0)
        self._captions_counted = (0, 0)

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
            report.num_reused,
            seconds,
        )
        rope, modulation = self._runner.rope, self._runner.modulation
        now = (rope.hits, rope.misses, modulation.hits, modulation.misses)
        new = tuple(a - b for a, b in zip(now, self._counted, strict=True))
        self._counted = now
        self._telemetry.rope_cache(new[0], new[1], rope.num_bytes)
        self._telemetry.modulation_cache(new[2], new[3])
        if (captions := self._runner.captions) is not None:
            hits, misses = self._captions_counted
            self._captions_counted = captions.hits, captions.misses
            self._telemetry.caption_cache(
                captions.hits - hits, captions.misses - misses, captions.num_bytes
            )
        if (graphs := self._runner.execution.graphs) is not None:
            self._telemetry.graphs(graphs.hits, graphs.misses, graphs.larger, graphs.num_bytes)

    def count_decode(self, sequence: Sequence, seconds: float) -> None:
        """Count a decoding; from any thread, for a lost update does no harm to a mean."""
        rate = seconds / sequence.num_tokens
        before = self.decode_s_per_token or rate
        self.decode_s_per_token = _MEMORY * before + (1 - _MEMORY) * rate

    def decode_seconds(self, sequence: Sequence) -> float:
        """Predicted seconds of decoding a sequence."""
        return self.decode_s_per_token * sequence.num_tokens

    def cost_model(self) -> CostModel | None:
        """A step's cost in proportion to its tokens, as of late; None before the first step."""
        if not self.tokens_per_s:
            return None
        points = tuple((tokens, tokens / self.tokens_per_s) for tokens in (1, 1024))
        return CostModel(points, reference_length=1024, seconds_per_pair=0.0)
