"""Placeholder."""

from fit_kernels.attention.grouped import attend


def use_attention(name): ...


attention_varlen = attend
