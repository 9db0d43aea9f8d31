"""torch's own variable-length attention (from torch 2.11, CUDA only): FlashAttention inside."""

from __future__ import annotations

import functools
import inspect
from typing import Any

import torch
from torch import Tensor

from fit_kernels.attention.implementation import (
    Runs,
    flash_refusal,
    package_missing,
    with_query_heads,
)


class TorchVarlen:
    """`torch.nn.attention.varlen.varlen_attn`."""

    captures = True

    def missing(self) -> str | None:
        """It came with torch 2.10, and takes a scale since 2.11."""
        return package_missing("torch.nn.attention.varlen", "a torch with varlen_attn (2.11)")

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        """As every FlashAttention, and torch must have been built with it."""
        if refusal := flash_refusal(dtype, device, head_dim):
            return refusal
        if not torch.backends.cuda.is_flash_attention_available():
            return "this build of torch has no flash attention"
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
        """Keywords only where versions differ: `scale` is one that all of them have."""
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {"scale": scale}
        if k_TGE.shape[1] != q_THE.shape[1]:
            if _takes_fewer_key_heads():
                options["enable_gqa"] = True
            else:
                k_TGE, v_TGE = (with_query_heads(x, q_THE.shape[1]) for x in (k_TGE, v_TGE))
        out = varlen_attn(
            q_THE, k_TGE, v_TGE, cu_seqlens, cu_seqlens, max_length, max_length, **options
        )
        assert isinstance(out, Tensor)
        return out


TORCH_VARLEN = TorchVarlen()


@functools.cache
def _takes_fewer_key_heads() -> bool:
    from torch.nn.attention.varlen import varlen_attn

    return "enable_gqa" in inspect.signature(varlen_attn).parameters
