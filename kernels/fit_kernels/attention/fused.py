"""Our own Triton kernels: a head of 72 values is 64 + 16, not 128, and fp32 is taken too."""

from __future__ import annotations

import torch
from torch import Tensor

from fit_kernels.attention.implementation import Runs, package_missing
from fit_kernels.backend import obstacle_to_fused
from fit_kernels.launch import FUSED_DTYPES

WIDEST_HEAD = 128


class Fused:
    """`fit_kernels.fused.attention_varlen`, through its registered operator."""

    captures = True

    def missing(self) -> str | None:
        """Whether Triton is here."""
        return package_missing("triton", "triton")

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        """CUDA, or anything under Triton's interpreter."""
        if obstacle := obstacle_to_fused(device):
            return obstacle
        if dtype not in FUSED_DTYPES:
            known = ", ".join(str(d).removeprefix("torch.") for d in FUSED_DTYPES)
            return f"dtype is {dtype}; it must be one of {known}"
        if head_dim > WIDEST_HEAD:
            return f"head_dim is {head_dim}; it must be at most {WIDEST_HEAD}"
        return None

    def attend(
        self,
        q_THE: Tensor,
        k_TGE: Tensor,
        v_TGE: Tensor,
        cu_seqlens: Tensor,
        runs: Runs,
        max_length: int,
        scale: float | None,
    ) -> Tensor:
        """Only shapes decide what is launched, so a graph may be replayed with other lengths."""
        from fit_kernels.attention.registered import attention_varlen

        factor = q_THE.shape[-1] ** -0.5 if scale is None else scale
        return attention_varlen(q_THE, k_TGE, v_TGE, cu_seqlens, factor)[0]


FUSED = Fused()
