"""FlashAttention 2, 3 and 4, from whichever of their packages is installed.

Sources: arXiv:2307.08691, arXiv:2407.08608; the packages flash-attn, flash-attn-3 (module
flash_attn_interface) and flash-attn-4 (module flash_attn.cute).
"""

from __future__ import annotations

import functools
import importlib
import inspect
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from fit_kernels.attention.implementation import Runs, flash_refusal, package_missing


@dataclass(frozen=True)
class FlashAttention:
    """One major version.

    Attributes:
        module: where its `flash_attn_varlen_func` is.
        package: what to install.
        capabilities: first number of the compute capabilities it has kernels for.
        widest: the largest head dim it takes on all of them.
    """

    module: str
    package: str
    capabilities: tuple[int, ...]
    widest: int = 256
    captures: ClassVar[bool] = True

    def missing(self) -> str | None:
        """Whether the package is here."""
        return package_missing(self.module, self.package)

    def refusal(self, dtype: torch.dtype, device: torch.device, head_dim: int) -> str | None:
        """As every FlashAttention, and the device must be one it has kernels for."""
        if refusal := flash_refusal(dtype, device, head_dim, self.widest):
            return refusal
        major = torch.cuda.get_device_capability(device)[0]
        if major not in self.capabilities:
            known = ", ".join(f"sm_{c}x" for c in self.capabilities)
            return f"device is sm_{major}x; it must be one of {known}"
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
        """Fewer key heads are fine; version 4 finds the longest sequence by itself."""
        function = _function(self.module)
        options: dict[str, Any] = {
            "cu_seqlens_q": cu_seqlens,
            "cu_seqlens_k": cu_seqlens,
            "max_seqlen_q": max_length,
            "max_seqlen_k": max_length,
            "softmax_scale": scale,
        }
        taken = _parameters(self.module)
        out = function(q_THE, k_TGE, v_TGE, **{k: v for k, v in options.items() if k in taken})
        return out[0] if isinstance(out, tuple) else out  # some versions add the log-sum-exp


FLASH_ATTN_2 = FlashAttention("flash_attn.flash_attn_interface", "flash-attn", (8, 9, 10, 12))
FLASH_ATTN_3 = FlashAttention("flash_attn_interface", "flash-attn-3", (9,))
FLASH_ATTN_4 = FlashAttention("flash_attn.cute", "flash-attn-4", (9, 10, 11), widest=128)


@functools.cache
def _function(module: str) -> Any:
    return importlib.import_module(module).flash_attn_varlen_func


@functools.cache
def _parameters(module: str) -> frozenset[str]:
    return frozenset(inspect.signature(_function(module)).parameters)
