"""xformers' memory-efficient attention under a block-diagonal mask."""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from fit_kernels.attention.implementation import (
    Runs,
    flash_refusal,
    package_missing,
    with_query_heads,
)


class XformersBlocks:
    """`xformers.ops.memory_efficient_attention` with a `BlockDiagonalMask`."""

    captures = False

    def missing(self) -> str | None:
        """Whether the package is here, and its compiled part fits this torch."""
        if missing := package_missing("xformers.ops", "xformers"):
            return missing
        compiled_part = importlib.import_module("xformers._cpp_lib")
        failure = getattr(compiled_part, "_cpp_library_load_exception", None)
        return failure and f"xformers is installed but its kernels do not load: {failure}"

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        """fp32 is taken too."""
        taken = torch.bfloat16 if dtype == torch.float32 else dtype
        return flash_refusal(taken, device, head_dim)

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
        """The mask is made from the lengths on the host, once for each batch."""
        from xformers.ops import (  # pyright: ignore[reportMissingImports]
            memory_efficient_attention,
        )

        k_THE, v_THE = (with_query_heads(x, q_THE.shape[1]) for x in (k_TGE, v_TGE))
        mask = _mask(tuple(runs), q_THE.device)
        q, k, v = (x[None] for x in (q_THE, k_THE, v_THE))
        return memory_efficient_attention(q, k, v, attn_bias=mask, scale=scale)[0]


XFORMERS_BLOCKS = XformersBlocks()


@functools.lru_cache(maxsize=8)
def _mask(runs: tuple[tuple[int, int, int], ...], device: torch.device) -> Any:
    from xformers.ops.fmha.attn_bias import (  # pyright: ignore[reportMissingImports]
        BlockDiagonalMask,
    )

    lengths = [n for _, count, n in runs for _ in range(count)]
    return BlockDiagonalMask.from_seqlens(lengths, device=device)
