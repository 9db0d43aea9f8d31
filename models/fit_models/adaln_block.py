"""The adaLN-Zero block around any attention and any MLP, and the run through a stack of them.

Knows norms, gates and where modulation comes in; not what attention or MLP do. FiTv2's block
(`fit_models.layers`) is its low-rank relative.
Source: DiT §3.2 (arXiv:2212.09748), whose names these are.

Dimension key: T packed tokens, S sequences, R modulation rows, D width, F MLP width.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import gated_residual_layer_norm_modulate, layer_norm_modulate
from fit_models.layers import linear_at
from fit_models.modulation_rows import Modulation
from fit_models.packing import PackedLayout

NORM_EPS = 1e-6


class GeluMlp(nn.Module):
    """Two linear maps with GELU's tanh approximation between."""

    def __init__(self, hidden_size: int, mlp_hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(hidden_size, mlp_hidden)
        self.fc2 = nn.Linear(mlp_hidden, hidden_size)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        return self.fc2(F.gelu(self.fc1(x_TD), approximate="tanh"))


class AdaLNBlock(nn.Module):
    """Attention and MLP, each behind adaLN and a gate; the modulation comes from outside."""

    def __init__(
        self, hidden_size: int, attention: nn.Module, mlp: nn.Module, mlp_norm_eps: float = NORM_EPS
    ) -> None:
        super().__init__()
        self.attn = attention
        self.mlp = mlp
        self.mlp_norm_eps = mlp_norm_eps
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(hidden_size, 6 * hidden_size))

    def forward(
        self,
        x_TD: Tensor,
        normed_TD: Tensor,
        modulation_R6D: Tensor,
        following_RM: Tensor,
        row_T: Tensor,
        layout: PackedLayout,
    ) -> tuple[Tensor, Tensor]:
        """Advance the residual stream; arguments and result as `fit_models.layers.Block.forward`.

        Returns:
            the stream, and the stream normalised and modulated for what follows, each [T, D].
        """
        _, _, gate1, shift2, scale2, gate2 = modulation_R6D.chunk(6, dim=-1)
        width = x_TD.shape[-1]
        shift3, scale3 = following_RM[:, :width], following_RM[:, width : 2 * width]
        y_TD = self.attn(normed_TD, layout)
        x_TD, normed_TD = gated_residual_layer_norm_modulate(
            x_TD, y_TD, gate1, shift2, scale2, row_T, self.mlp_norm_eps
        )
        y_TD = self.mlp(normed_TD)
        return gated_residual_layer_norm_modulate(
            x_TD, y_TD, gate2, shift3, scale3, row_T, NORM_EPS
        )


def full_modulation(
    blocks: Iterable[nn.Module], final_layer: nn.Module, condition_SD: Tensor, row_of_token: Tensor
) -> Modulation:
    """Rows of every block and of the final layer from the activated conditioning vectors.

    Args:
        blocks: `AdaLNBlock`s.
        final_layer: with an `adaLN_modulation` of two vectors.
        condition_SD: one per sequence, SiLU already taken.
        row_of_token: int64 [T].
    """
    rows = tuple(adaln_projection(block)(condition_SD) for block in blocks)
    return Modulation(rows, adaln_projection(final_layer)(condition_SD), row_of_token)


def adaln_projection(module: nn.Module) -> nn.Linear:
    """The one linear map of a module's adaLN."""
    layers = module.adaLN_modulation
    assert isinstance(layers, nn.Sequential), layers
    return linear_at(layers, 1)


def run_blocks(
    blocks: Iterable[nn.Module], x_TD: Tensor, modulation: Modulation, layout: PackedLayout
) -> Tensor:
    """Take embedded tokens through all blocks.

    Returns:
        [T, D], normalised and modulated for the final layer's linear map.
    """
    row_T = modulation.row_of_token
    following = (*modulation.blocks[1:], modulation.final)
    shift_RD, scale_RD = modulation.blocks[0].chunk(6, dim=-1)[:2]
    normed_TD = layer_norm_modulate(x_TD, shift_RD, scale_RD, row_T)
    for block, own, after in zip(blocks, modulation.blocks, following, strict=True):
        x_TD, normed_TD = block(x_TD, normed_TD, own, after, row_T, layout)
    return normed_TD
