"""The same network on a batch padded to its longest image, as FiT's own code trains.

Knows FiT's batch (arXiv:2402.12376 and its released code: rows padded to the longest image, a
boolean mask [B, 1, N, N] through `scaled_dot_product_attention`, losses masked) and nothing of
packing: the weights are those of `fit_models.networks.fitv2`, the walk through them is this file's.
Attention may be two plain products instead, which is what packed sequences use on a CPU: so the
gain of packing is told from that of the products.

Dimension key: B images, N tokens of the longest, T real tokens, K token channels, D width, H heads,
E head dim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fit_kernels.reference import rotate_interleaved
from fit_models.config import ModelConfig
from fit_models.layers import Block
from fit_models.networks.fitv2 import FiTv2
from fit_models.rope import rope_table


@dataclass(frozen=True)
class PaddedBatch:
    """Where the images of a padded batch are.

    Attributes:
        real: bool [B, N], whether a place holds a token.
        visible: bool [B, 1, N, N], which keys a query sees: real ones see real ones, padding sees
            padding, so that no row of the softmax is empty.
        cos: fp32 [B, 1, N, E/2].
        sin: fp32 [B, 1, N, E/2].
    """

    real: Tensor
    visible: Tensor
    cos: Tensor
    sin: Tensor

    @property
    def padding_share(self) -> float:
        """Places without a token over all places."""
        return 1.0 - float(self.real.float().mean())


def padded_batch(grids: Sequence[tuple[int, int]], config: ModelConfig) -> PaddedBatch:
    """Describe images of the given (rows, columns), each in a row of its own."""
    length_B = torch.tensor([rows * columns for rows, columns in grids])
    longest = int(length_B.max())
    real_BN = torch.arange(longest)[None] < length_B[:, None]
    cos, sin = (torch.zeros(len(grids), 1, longest, config.head_dim // 2) for _ in range(2))
    for image, (rows, columns) in enumerate(grids):
        tables = rope_table(rows, columns, config.head_dim, config.rope)
        cos[image, 0, : rows * columns], sin[image, 0, : rows * columns] = tables
    visible = real_BN[:, None, :, None] == real_BN[:, None, None, :]
    return PaddedBatch(real_BN, visible, cos, sin)


def pad_tokens(tokens_TK: Tensor, batch: PaddedBatch) -> Tensor:
    """Lay tokens that stand end to end into rows [B, N, K], zeros after each image."""
    tokens_BNK = tokens_TK.new_zeros(*batch.real.shape, tokens_TK.shape[-1])
    tokens_BNK[batch.real] = tokens_TK
    return tokens_BNK


def padded_forward(
    network: FiTv2,
    tokens_BNK: Tensor,
    batch: PaddedBatch,
    timestep_B: Tensor,
    label_B: Tensor,
    products: bool = False,
) -> Tensor:
    """Predict the velocity of every place, zero on padding: [B, N, K] -> [B, N, K].

    With `products` attention is two plain products and a softmax between, else PyTorch's SDPA.
    """
    condition_BD = network.condition(timestep_B, label_B)
    shared_B6D = network.global_adaLN_modulation[1](condition_BD)
    x_BND = network.x_embedder(tokens_BNK)
    blocks = zip(network.blocks, network.low_rank_modulations(), strict=True)
    for block, (down, up) in blocks:
        assert isinstance(block, Block)
        modulation_B16D = (shared_B6D + up(down(condition_BD)))[:, None]
        shift1, scale1, gate1, shift2, scale2, gate2 = modulation_B16D.chunk(6, dim=-1)
        y_BND = _attention(block, _modulated(x_BND, shift1, scale1), batch, products)
        x_BND = torch.addcmul(x_BND, gate1, y_BND)
        y_BND = block.mlp(_modulated(x_BND, shift2, scale2))
        x_BND = torch.addcmul(x_BND, gate2, y_BND)
    shift, scale = network.final_layer.adaLN_modulation[1](condition_BD)[:, None].chunk(2, -1)
    return network.final_layer.linear(_modulated(x_BND, shift, scale)) * batch.real[..., None]


def padded_loss(velocity_BNK: Tensor, target_BNK: Tensor, batch: PaddedBatch) -> Tensor:
    """Mean over images of each one's mean square over its real tokens."""
    error_BN = (velocity_BNK.float() - target_BNK).square().mean(-1) * batch.real
    return (error_BN.sum(1) / batch.real.sum(1)).mean()


def _modulated(x_BND: Tensor, shift_B1D: Tensor, scale_B1D: Tensor) -> Tensor:
    normed_BND = F.layer_norm(x_BND, x_BND.shape[-1:], eps=1e-6)
    return torch.addcmul(shift_B1D, normed_BND, 1.0 + scale_B1D)


def _attention(block: Block, x_BND: Tensor, batch: PaddedBatch, products: bool) -> Tensor:
    attn = block.attn
    qkv = attn.qkv(x_BND).unflatten(-1, (3, attn.num_heads, -1)).permute(2, 0, 3, 1, 4)
    q_BHNE, k_BHNE, v_BHNE = qkv.unbind(0)
    q_BHNE, k_BHNE = (_rotated(y, batch).to(v_BHNE.dtype) for y in (q_BHNE, k_BHNE))
    if products:
        scores_BHNN = q_BHNE @ k_BHNE.transpose(-1, -2) * q_BHNE.shape[-1] ** -0.5
        y_BHNE = scores_BHNN.masked_fill(~batch.visible, -torch.inf).softmax(-1) @ v_BHNE
    else:
        y_BHNE = F.scaled_dot_product_attention(q_BHNE, k_BHNE, v_BHNE, attn_mask=batch.visible)
    return attn.proj(y_BHNE.transpose(1, 2).flatten(2) * batch.real[..., None])


def _rotated(x_BHNE: Tensor, batch: PaddedBatch) -> Tensor:
    """Normalise each head's values and turn pairs (2j, 2j + 1), as FiTv2 does to q and k."""
    normed_BHNE = F.layer_norm(x_BHNE, x_BHNE.shape[-1:], eps=1e-6)
    return rotate_interleaved(normed_BHNE, batch.cos, batch.sin)
