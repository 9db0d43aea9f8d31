"""Limits and choices of the engine: a plain dataclass that knows no web and no device."""

from __future__ import annotations

from dataclasses import dataclass

BATCHING = ("packed", "serial", "equal-shape-step", "equal-shape-dynamic", "padded-mixed")
CALIBRATION = ("off", "stored", "auto")
EXECUTION = ("auto", "eager", "graphs", "compile")


@dataclass(frozen=True)
class EngineConfig:
    """What the engine may use, and how it works.

    Attributes:
        max_num_batched_tokens: tokens of one step, both branches of guided sequences counted; a
            larger sequence runs alone. None takes the calibrated knee, else 1024 on a CPU and
            16384 on a GPU.
        max_num_seqs: sequences of one step (a guided one counts once).
        max_queued_requests: sequences that may wait; more are refused.
        max_state_bytes: memory for the state of sequences that have begun, their step cache
            included; who finds none waits.
        token_buckets: totals a step is padded up to; empty pads nothing. None pads nothing on a
            CPU, to multiples of 256 (512 above 4096) on a GPU.
        num_threads: torch threads of a step; None and 0 leave torch's choice.
        decode_workers: threads that turn latents into pixels.
        rope_cache_tokens: rows of the rotary slab.
        modulation_cache_rows: (timestep, label) rows kept.
        prompt_cache_bytes: memory for what the language model makes of prompts; those in use may
            exceed it.
        caption_cache_bytes: memory for what the network makes of them; those in use may exceed it.
        wedge_timeout_s: a step that takes longer means the loop is stuck.
        policy: who goes first, see `Order`.
        priority_step_s: waiting that a level of priority outweighs.
        patience_s: the deadline that "deadline" gives those without one.
        step_cache_rule: "plan" or "change", see `StepCache`.
        step_cache_order: 1 extrapolates predictions that are reused, 0 repeats them.
        batch_invariant: pictures are the same bit for bit, whatever runs beside them.
        overlap: plan the next step while one runs; None does so on a GPU.
        calibration: "off", "stored" (use what was measured on this machine) or "auto" (measure
            at the start if nothing is stored).
        execution: "eager", "graphs" (CUDA graphs by token bucket), "compile" (torch.compile of the
            blocks), or "auto".
        batching: "packed", or what others do, for comparison (`batching.py`).
    """

    max_num_batched_tokens: int | None = None
    max_num_seqs: int = 64
    max_queued_requests: int = 256
    max_state_bytes: int = 2**30
    token_buckets: tuple[int, ...] | None = None
    num_threads: int | None = None
    decode_workers: int = 1
    rope_cache_tokens: int = 65_536
    modulation_cache_rows: int = 2048
    prompt_cache_bytes: int = 2**28
    caption_cache_bytes: int = 2**30
    wedge_timeout_s: float = 120.0
    policy: str = "fcfs"
    priority_step_s: float = 10.0
    patience_s: float = 60.0
    step_cache_rule: str = "plan"
    step_cache_order: int = 1
    batch_invariant: bool = False
    overlap: bool | None = None
    calibration: str = "off"
    execution: str = "auto"
    batching: str = "packed"

    def __post_init__(self) -> None:
        for name in (
            "max_num_seqs",
            "max_queued_requests",
            "max_state_bytes",
            "decode_workers",
            "rope_cache_tokens",
            "modulation_cache_rows",
            "prompt_cache_bytes",
            "caption_cache_bytes",
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
        for name, known in (
            ("batching", BATCHING),
            ("calibration", CALIBRATION),
            ("execution", EXECUTION),
        ):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} {getattr(self, name)!r} is unknown; known: {', '.join(known)}"
                )
        buckets = self.token_buckets or ()
        if any(b < 1 for b in buckets) or list(buckets) != sorted(set(buckets)):
            raise ValueError(f"token_buckets {buckets} must be increasing and at least 1")
