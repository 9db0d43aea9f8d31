"""Limits of the engine: a plain dataclass that knows no web and no device."""

from __future__ import annotations

from dataclasses import dataclass

BATCHING = ("packed", "serial", "equal-shape")


@dataclass(frozen=True)
class EngineConfig:
    """What the engine may use.

    Attributes:
        max_num_batched_tokens: tokens of one step, both branches of guided sequences counted; a
            larger sequence runs alone. None takes 1024 on a CPU, 16384 on a GPU.
        max_num_seqs: sequences of one step (a guided one counts once).
        max_queued_requests: sequences that may wait; more are refused.
        token_buckets: totals a step is padded up to; empty pads nothing. None pads nothing on a
            CPU, to multiples of 256 (512 above 4096) on a GPU.
        num_threads: torch threads of a step; None and 0 leave torch's choice.
        decode_workers: threads that turn latents into pixels.
        rope_cache_tokens: rows of the rotary slab.
        modulation_cache_rows: (timestep, label) rows kept.
        wedge_timeout_s: a step that takes longer means the loop is stuck.
        batching: "packed", or what others do, for comparison: "serial" (one sequence at a time),
            "equal-shape" (only sequences of one size share a step).
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int = 64
    max_queued_requests: int = 256
    token_buckets: tuple[int, ...] | None = None
    num_threads: int | None = None
    decode_workers: int = 1
    rope_cache_tokens: int = 65_536
    modulation_cache_rows: int = 2048
    wedge_timeout_s: float = 120.0
    batching: str = "packed"

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_queued_requests",
            "decode_workers",
            "rope_cache_tokens",
            "modulation_cache_rows",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.max_num_batched_tokens is not None and self.max_num_batched_tokens < 1:
            raise ValueError(
                f"max_num_batched_tokens is {self.max_num_batched_tokens}; it must be at least 1"
            )
        if self.num_threads is not None and self.num_threads < 0:
            raise ValueError(f"num_threads is {self.num_threads}; it must be at least 0")
        if not self.wedge_timeout_s > 0:
            raise ValueError(f"wedge_timeout_s is {self.wedge_timeout_s}; it must be above 0")
        if self.batching not in BATCHING:
            raise ValueError(f"batching {self.batching!r} is unknown; known: {', '.join(BATCHING)}")
        buckets = self.token_buckets or ()
        if any(b < 1 for b in buckets) or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"token_buckets {buckets} must be increasing and at least 1")
