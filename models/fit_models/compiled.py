"""A network's blocks through `torch.compile`: one compilation serves all blocks and all mixes.

Attention stays outside, for what it does depends on lengths that the host knows: a compiler would
begin anew for every mix of sizes. What else differs from block to block or from step to step is
made alike before the call, or is a dimension without a fixed size.

Dimension key: T packed tokens, H heads, E head dim, D width, R modulation rows, M values of a row.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fit_models.layers import Block, attend
from fit_models.packing import PackedLayout


def compile_blocks(network: nn.Module, backend: str = "inductor") -> None:
    """Compile every block, on a CPU or a GPU; the compiler runs at the first call, for seconds.

    Weights are read where they lie: move or replace them before.

    Args:
        network: its blocks are `fit_models.layers.Block`.
        backend: of `torch.compile`.

    Raises:
        ValueError: the network has no such blocks.
    """
    if not _blocks(network):
        raise ValueError(f"compiling is for FiTv2's blocks; {type(network).__name__} has none")
    forward = torch.compile(Block.forward, dynamic=True, backend=backend)
    for block in _blocks(network):
        attention: Any = block.attn
        attention.attend = _attend_outside
        block.forward = partial(_call, forward, block)


def release_blocks(network: nn.Module) -> None:
    """Undo `compile_blocks`; the process keeps what was compiled for the next time."""
    for block in _blocks(network):
        block.__dict__.pop("forward", None)
        block.attn.__dict__.pop("attend", None)


def _blocks(network: nn.Module) -> list[Block]:
    return [module for module in network.modules() if isinstance(module, Block)]


@torch.compiler.disable
def _attend_outside(q_THE: Tensor, k_THE: Tensor, v_THE: Tensor, layout: PackedLayout) -> Tensor:
    """The result lies in memory in one way, however many sequences there are."""
    return attend(q_THE, k_THE, v_THE, layout).contiguous()


def _call(
    forward: Callable[..., Any],
    block: Block,
    x_TD: Tensor,
    normed_TD: Tensor,
    modulation_R6D: Tensor,
    following_RM: Tensor,
    row_T: Tensor,
    layout: PackedLayout,
) -> tuple[Tensor, Tensor]:
    following_R2D = following_RM[:, : 2 * x_TD.shape[-1]]  # all that a block reads of it
    own, after = _in_one_place(modulation_R6D), _in_one_place(following_R2D)
    return forward(block, x_TD, normed_TD, own, after, row_T, layout)


def _in_one_place(rows_RM: Tensor) -> Tensor:
    """A copy without the offset of a block's view; two rows at least, for a one is a constant."""
    return rows_RM.repeat(2 if rows_RM.shape[0] == 1 else 1, 1)
