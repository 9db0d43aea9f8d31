"""Activation checkpointing: blocks keep their inputs and compute the rest anew going backward.

Costs one more forward pass and saves most of the memory of activations (Chen et al.,
arXiv:1604.06174). Knows blocks as modules only.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.utils.checkpoint import checkpoint


def recompute_in_backward(blocks: Iterable[nn.Module]) -> None:
    """Checkpoint every block's forward from now on.

    Only `forward` is replaced, so hooks on a block still see its output, once, with its gradient.
    """
    for block in blocks:
        block.forward = partial(checkpoint, block.forward, use_reentrant=False)
