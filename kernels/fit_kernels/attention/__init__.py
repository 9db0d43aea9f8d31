"""Attention inside each sequence of a pack, by whichever implementation was chosen."""

from fit_kernels.attention.choice import attention_varlen, use_attention
from fit_kernels.attention.grouped import equal_runs

__all__ = ["attention_varlen", "equal_runs", "use_attention"]
