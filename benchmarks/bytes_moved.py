"""Bytes that operators move, predicted without a GPU: as PyTorch runs them one by one, and fused.

The unfused count runs the reference on the meta device and adds up what every operation reads and
writes; the fused one is `kernel_cases.bytes_of`. Caches are ignored, so small packs do better.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from kernel_cases import OPERATORS, Shape, bytes_of, require_gradients, run_forward
from measurement import markdown
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fit_kernels import use_backend
from fit_models.config import named_config

MODELS = ("FiTv2-XL/2", "FiTv2-3B/2")
TOKENS = (256, 2048, 8192)
# A block of the network: how often it calls each operator.
PER_BLOCK = {"gated_residual_layer_norm_modulate": 2, "qk_norm_rope": 1, "swiglu": 1}
_GATHERS = ("index_select", "embedding", "gather")
_NO_TRAFFIC = ("_unsafe_view", "empty", "empty_like", "empty_strided", "new_empty")
_DTYPE = torch.bfloat16


@dataclass
class Traffic:
    """Operations that ran and the bytes they read and wrote."""

    operations: int = 0
    num_bytes: int = 0


class CountTraffic(TorchDispatchMode):
    """Adds up the traffic of every operation that moves data; views move none."""

    def __init__(self) -> None:
        super().__init__()
        self.traffic = Traffic()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        is_view = any(r.alias_info and not r.alias_info.is_write for r in func._schema.returns)
        if is_view or name in _NO_TRAFFIC:
            return out
        read = [_touched(t) for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        written = sum(_touched(t) for t in tree_leaves(out) if isinstance(t, Tensor))
        if name in _GATHERS:
            read[0] = min(read[0], written)
        self.traffic.operations += 1
        self.traffic.num_bytes += sum(read) + written
        return out


def unfused_traffic(operator: str, shape: Shape, backward: bool) -> Traffic:
    """What the reference's own operations move: of the forward, or of the backward alone."""
    use_backend("reference")
    inputs = OPERATORS[operator](shape, _DTYPE, torch.device("meta"))
    wanted = require_gradients(inputs) if backward else []
    with CountTraffic() as forward:
        outputs = run_forward(operator, inputs)
    if not backward:
        return forward.traffic
    with CountTraffic() as counted:
        torch.autograd.grad(outputs, wanted, [torch.empty_like(t) for t in outputs])
    return counted.traffic


@dataclass(frozen=True)
class Prediction:
    """One operator, one direction, one shape."""

    operator: str
    model: str
    tokens: int
    backward: bool
    unfused: Traffic
    fused_bytes: int


def predictions() -> Iterator[Prediction]:
    """Every operator, forward and backward, at the widths of both networks."""
    for model in MODELS:
        for operator in OPERATORS:
            for backward in (False, True):
                for tokens in TOKENS:
                    shape = Shape(tokens, named_config(model))
                    if (
                        backward
                        and not OPERATORS[operator](
                            shape, _DTYPE, torch.device("meta")
                        ).differentiable
                    ):
                        continue
                    yield Prediction(
                        operator,
                        model,
                        tokens,
                        backward,
                        unfused_traffic(operator, shape, backward),
                        bytes_of(operator, shape, _DTYPE, backward),
                    )


def tables(bandwidth: float) -> str:
    """Two Markdown tables: per operator, and summed over a network."""
    all_of_them = list(predictions())
    headings = (
        "operator",
        "network",
        "tokens",
        "unfused: operations",
        "MB",
        "floor us",
        "fused: MB",
        "floor us",
        "fewer bytes",
    )
    lines = [
        (
            p.operator + (", backward" if p.backward else ""),
            p.model,
            str(p.tokens),
            str(p.unfused.operations),
            f"{p.unfused.num_bytes / 1e6:.2f}",
            f"{p.unfused.num_bytes / bandwidth * 1e6:.2f}",
            f"{p.fused_bytes / 1e6:.2f}",
            f"{p.fused_bytes / bandwidth * 1e6:.2f}",
            f"{p.unfused.num_bytes / p.fused_bytes:.1f}x",
        )
        for p in all_of_them
    ]
    return f"{markdown(headings, lines)}\n\n{_network_table(all_of_them, bandwidth)}"


def _network_table(all_of_them: list[Prediction], bandwidth: float) -> str:
    """The blocks of a whole network, forward: elementwise traffic only, no matrix product."""
    headings = (
        "network",
        "tokens",
        "operations unfused",
        "fused",
        "values per token, block and width unfused",
        "fused",
        "ms unfused",
        "fused",
    )
    lines = []
    for model in MODELS:
        config = named_config(model)
        for tokens in TOKENS:
            chosen = [
                (PER_BLOCK[p.operator], p)
                for p in all_of_them
                if (p.model, p.tokens, p.backward) == (model, tokens, False)
                and p.operator in PER_BLOCK
            ]
            unfused = sum(times * p.unfused.num_bytes for times, p in chosen)
            fused = sum(times * p.fused_bytes for times, p in chosen)
            values = tokens * config.hidden_size * _DTYPE.itemsize
            operations = sum(times * p.unfused.operations for times, p in chosen)
            lines.append(
                (
                    model,
                    str(tokens),
                    str(config.depth * operations),
                    str(config.depth * sum(PER_BLOCK.values())),
                    f"{unfused / values:.1f}",
                    f"{fused / values:.1f}",
                    f"{config.depth * unfused / bandwidth * 1e3:.2f}",
                    f"{config.depth * fused / bandwidth * 1e3:.2f}",
                )
            )
    return markdown(headings, lines)


_PREAMBLE = """# Predicted bytes moved, and the time they take at least

Written by `python benchmarks/bench_kernels.py --predict`; no GPU was used. Every fused operator,
forward and backward, in bf16.

- Unfused: the reference run operation by operation (counted on the meta device), each reading its
  inputs and writing its outputs once. Gathered rows count as gathered. Small packs do better than
  this, for their tensors stay in the L2.
- Fused: every tensor an operator takes or returns moved once, and nothing else.
- Floor: those bytes at {rate:.1f} TB/s, no launch counted (`--bandwidth` takes another rate).
- The second table is one forward of all blocks: 2 gated residuals with norm and modulation, 1
  QK-norm with rotation and 1 SwiGLU a block; matrix products and attention are not in it.

"""


def write_prediction(path: Path, bandwidth: float) -> str:
    """Write the page, and return its tables."""
    text = tables(bandwidth)
    path.write_text(_PREAMBLE.format(rate=bandwidth / 1e12) + text + "\n", encoding="utf-8")
    return text


def _touched(tensor: Tensor) -> int:
    """Bytes of the elements behind a tensor; an expanded dimension has one."""
    elements = 1
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        elements *= size if stride else min(size, 1)
    return elements * tensor.element_size()
