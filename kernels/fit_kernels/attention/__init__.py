"""Attention inside each sequence of a pack, by whichever implementation was chosen."""

from fit_kernels.attention.choice import (
    ATTENTIONS,
    attention_varlen,
    capture_obstacle,
    chosen_attention,
    current_attention,
    obstacles,
    use_attention,
)
from fit_kernels.attention.grouped import equal_runs

__all__ = [
    "ATTENTIONS",
    "attention_varlen",
    "capture_obstacle",
    "chosen_attention",
    "current_attention",
    "equal_runs",
    "obstacles",
    "use_attention",
]
