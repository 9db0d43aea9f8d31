"""Networks whose bits for a sequence do not depend on who shares the packed batch with it.

Libraries choose tiles, and whether to split a sum, by the number of rows, and the last elements of
an elementwise loop on a CPU are rounded otherwise than those before them. Two ways around it:

- `use_fixed_tiles`, where operators and attention are fused (`fixed_tiles_obstacle` says whether
  they are): a batch still goes through the network at once.
- `AloneNetwork`, anywhere: the network is called for each sequence alone.

Either wants its modulation rows from `StackedModulation.rows_one_by_one`. Equal bits are promised
for one process on one machine: another number of threads, or another GPU, may round otherwise.

Dimension key: T packed tokens, B branches of a sequence, D width, F features, K token channels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fit_kernels import linear_fixed_tiles
from fit_kernels.attention import chosen_attention
from fit_kernels.backend import current_backend
from fit_models.joined import join_projections
from fit_models.networks.fitv2 import FiTv2, Modulation
from fit_models.packing import PackedLayout, pack_layout


class FixedTilesLinear(nn.Linear):
    """A linear layer with the weights of another, which it shares; for inference only."""

    def __init__(self, linear: nn.Linear) -> None:
        has_bias = linear.bias is not None
        super().__init__(linear.in_features, linear.out_features, bias=has_bias, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.train(linear.training)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002, the name that nn.Linear gives it
        """[T, D] -> [T, F].

        Raises:
            ValueError: a gradient would be wanted; there is none.
        """
        return linear_fixed_tiles(input, self.weight, self.bias)


def use_fixed_tiles(network: nn.Module) -> None:
    """Replace every linear layer; weights and their names stay, and once more changes nothing.

    Gated MLPs are joined first: unjoined ones multiply by weights that are no layer's.
    """
    join_projections(network)
    for parent in list(network.modules()):
        for name, child in list(parent.named_children()):
            if type(child) is nn.Linear:
                parent.set_submodule(name, FixedTilesLinear(child))


def fixed_tiles_obstacle(network: FiTv2) -> str | None:
    """Why fixed tiles would not make a network's bits independent of the batch; None if they do.

    Only our kernels are known to work on a sequence alike wherever it lies. Of the attentions,
    grouped joins sequences of equal length, and the others promise nothing.

    Raises:
        ValueError: the attention asked for does not take this network.
    """
    if (backend := current_backend()) != "fused":
        return f"operators are {backend}; they must be fused"
    weight = network.x_embedder.proj.weight
    attention = chosen_attention(weight.dtype, weight.device, network.config.head_dim)
    return None if attention == "fused" else f"attention is {attention}; it must be fused"


@dataclass(frozen=True)
class _Group:
    """The branches of one sequence: their tokens, the first token of each, their own layout."""

    tokens: slice
    first_B: Tensor
    layout: PackedLayout


class AloneNetwork:
    """A network that sees one sequence at a time, in tensors whose shapes are the sequence's own.

    Whatever it computes with, a sequence's numbers then pass through the same instructions whoever
    its neighbours are. What is small (a toy, the embedded model on a CPU) loses little by it.
    """

    def __init__(self, network: FiTv2) -> None:
        self._network = network
        self._known: tuple[PackedLayout, tuple[int, ...], list[_Group]] | None = None

    def denoise(
        self,
        tokens_TK: Tensor,
        layout: PackedLayout,
        modulation: Modulation,
        groups: Sequence[int],
    ) -> Tensor:
        """`FiTv2.denoise`, sequence by sequence: [T, K] -> [T, K].

        Args:
            tokens_TK, layout, modulation: as there. What follows of the layout is made once, and
                kept as long as the same object comes again.
            groups: branches of each sequence (1 or 2), in the order of the layout; what it has
                after them is padding, and gets zeros.

        Raises:
            ValueError: the groups are none, empty, or more than the layout has.
        """
        parts = [
            self._network.denoise(
                tokens_TK[group.tokens].clone(),  # aligned in memory, wherever it lay
                group.layout,
                _rows_of(modulation, group),
            )
            for group in self._groups(layout, tuple(groups))
        ]
        num_padding = len(tokens_TK) - sum(len(part) for part in parts)
        if num_padding:
            parts.append(parts[0].new_zeros(num_padding, parts[0].shape[1]))
        return torch.cat(parts)

    def _groups(self, layout: PackedLayout, sizes: tuple[int, ...]) -> list[_Group]:
        if self._known is None or self._known[0] is not layout or self._known[1] != sizes:
            self._known = layout, sizes, list(_split(layout, sizes))
        return self._known[2]


def _split(layout: PackedLayout, sizes: tuple[int, ...]) -> Iterator[_Group]:
    if not sizes or min(sizes) < 1 or sum(sizes) > layout.num_sequences:
        raise ValueError(
            f"groups of {list(sizes)} branches; the layout has {layout.num_sequences}, "
            "and every group must have at least 1"
        )
    branch = token = 0
    for size in sizes:
        lengths = layout.lengths[branch : branch + size]
        tokens = slice(token, token + sum(lengths))
        yield _Group(
            tokens,
            layout.cu_seqlens[branch : branch + size].long(),
            pack_layout(lengths, layout.rope_cos, layout.rope_sin, layout.rope_row[tokens].clone()),
        )
        branch, token = branch + size, tokens.stop


def _rows_of(modulation: Modulation, group: _Group) -> Modulation:
    """One row for each branch, whether or not branches share theirs."""
    row_B = modulation.row_of_token.index_select(0, group.first_B)
    return Modulation(
        tuple(rows.index_select(0, row_B) for rows in modulation.blocks),
        modulation.final.index_select(0, row_B),
        group.layout.seq_of_token,
    )
