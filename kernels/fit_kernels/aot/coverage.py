"""Which configurations the operators launch, learned by calling them.

Every launcher is called, forward and backward, with tensors that have a shape and no values, in the
layouts of serving: modulation rows are views into one wide table, values a view into the joint
projection. Counts of tokens, rows and sequences are arguments no kernel may depend on.

Dimension key: T packed tokens, R modulation rows, S sequences, D width, F MLP width, H query heads,
X heads of the joint projection, E head dim, P rows of the rotary slab, K channels of a token.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor

from fit_kernels.aot.shapes import SHAPES, TERNARY_SHAPES, Shape, TernaryShape
from fit_kernels.aot.specialisation import Configuration, specialise
from fit_kernels.fused import (
    attention_varlen,
    attention_varlen_backward,
    guided_step,
    layer_norm_modulate,
    linear_fixed_tiles,
    qk_norm_rope,
    row_sums,
    swiglu,
    ternary_linear,
)
from fit_kernels.launch import FUSED_DTYPES, recorded

_EPS = 1e-6
_ROTARY_ROWS = 100


@dataclass(frozen=True)
class Counts:
    """How much is in a pack: what changes from step to step."""

    tokens: int = 4096
    rows: int = 16
    sequences: int = 16


def covered(counts: Counts | None = None) -> dict[Configuration, list[str]]:
    """Give every configuration the operators launch, and the shapes and dtypes that need it."""
    counts = counts or Counts()
    needed: dict[Configuration, list[str]] = {}
    for shape, dtype in itertools.product((*SHAPES, *TERNARY_SHAPES), FUSED_DTYPES):
        user = f"{shape.name} {str(dtype).removeprefix('torch.')}"
        with recorded() as launches:
            if isinstance(shape, TernaryShape):
                _ternary_products(shape, dtype, counts)
            else:
                _Network(shape, dtype, counts).run()
        for configuration in map(specialise, launches):
            users = needed.setdefault(configuration, [])
            if user not in users:
                users.append(user)
    return dict(sorted(needed.items()))


def _ternary_products(shape: TernaryShape, dtype: torch.dtype, counts: Counts) -> None:
    """The products of a block of ternary weights; the one over the conditioning has a bias."""
    for tokens, width, features, with_bias in (
        (counts.rows, shape.condition, 6 * shape.width, True),
        (counts.tokens, shape.width, shape.width, False),
        (counts.tokens, shape.width, shape.mlp, False),
        (counts.tokens, shape.mlp, shape.width, False),
    ):
        ternary_linear.ternary_linear(
            torch.empty(tokens, width, dtype=dtype, device="meta"),
            torch.empty(features // 4, width, dtype=torch.uint8, device="meta"),
            torch.empty(1, device="meta"),
            torch.empty(features, dtype=dtype, device="meta") if with_bias else None,
        )


class _Network:
    """Calls what a block, the final layer and the sampler call, and their gradients."""

    def __init__(self, shape: Shape, dtype: torch.dtype, counts: Counts) -> None:
        self.shape, self.dtype, self.counts = shape, dtype, counts
        self.row_T = self._tensor(counts.tokens, dtype=torch.int64)

    def run(self) -> None:
        self.norms()
        self.rotation()
        self.attention()
        self.mlp()
        self.projections()
        self.sampler()

    def norms(self) -> None:
        """Norm and modulation, with the gated residual and without."""
        shape = self.shape
        x_TD, y_TD = (self._tensor(self.counts.tokens, shape.width) for _ in range(2))
        rows_RM = self._tensor(self.counts.rows, shape.row_stride)
        shift_RD, scale_RD, gate_RD = rows_RM[:, : 3 * shape.width].chunk(3, dim=1)
        shift = shift_RD if shape.with_shift else None
        row_T, norm = self.row_T, shape.norm
        out_TD = layer_norm_modulate.layer_norm_modulate(x_TD, shift, scale_RD, row_T, _EPS, norm)
        sum_TD, _ = layer_norm_modulate.gated_residual_layer_norm_modulate(
            x_TD, y_TD, gate_RD, shift, scale_RD, row_T, _EPS, norm
        )
        backward = layer_norm_modulate.norm_modulate_backward
        backward(x_TD, out_TD, None, None, scale_RD, row_T, _EPS, norm)
        _, _, mean_T, rstd_T = backward(
            sum_TD, out_TD, out_TD, gate_RD, scale_RD, row_T, _EPS, norm
        )
        row_sums.row_sums(out_TD, x_TD, mean_T, rstd_T, row_T, self.counts.rows)
        row_sums.row_sums(out_TD, y_TD, None, None, row_T, self.counts.rows)

    def rotation(self) -> None:
        """Norm and rotation of queries and keys out of the joint projection."""
        shape = self.shape
        qkv_TXE = self._tensor(self.counts.tokens, shape.all_heads, shape.head_dim)
        cos_PE2, sin_PE2 = (
            self._tensor(_ROTARY_ROWS, shape.head_dim // 2, dtype=torch.float32) for _ in range(2)
        )
        weight_JE = bias_JE = None
        if shape.affine_qk:
            heads = shape.heads + (shape.key_heads or shape.heads)
            weight_JE, bias_JE = (self._tensor(heads, shape.head_dim) for _ in range(2))
        q_THE, k_TGE = qk_norm_rope.qk_norm_rope(
            qkv_TXE, cos_PE2, sin_PE2, self.row_T, shape.heads, shape.qk_norm, _EPS,
            weight_JE, bias_JE, shape.interleaved,
        )  # fmt: skip
        qk_norm_rope.qk_norm_rope_backward(
            qkv_TXE, q_THE, k_TGE, None, cos_PE2, sin_PE2, self.row_T, shape.qk_norm, _EPS,
            weight_JE, bias_JE, shape.interleaved,
        )  # fmt: skip

    def attention(self) -> None:
        """Attention over queries and keys of their own and values inside the projection."""
        shape, tokens = self.shape, self.counts.tokens
        qkv_TXE = self._tensor(tokens, shape.all_heads, shape.head_dim)
        v_TGE = qkv_TXE[:, -(shape.key_heads or shape.heads) :]
        q_THE = self._tensor(tokens, shape.heads, shape.head_dim)
        k_TGE = self._tensor(*v_TGE.shape)
        cu_seqlens = self._tensor(self.counts.sequences + 1, dtype=torch.int32)
        out_THE, lse_HT = attention_varlen.attention_varlen_forward(q_THE, k_TGE, v_TGE, cu_seqlens)
        attention_varlen_backward.attention_varlen_backward(
            out_THE, q_THE, k_TGE, v_TGE, out_THE, lse_HT, cu_seqlens
        )

    def mlp(self) -> None:
        """The gated MLP between its two projections."""
        gate_up_T2F = self._tensor(self.counts.tokens, 2 * self.shape.mlp)
        swiglu.swiglu_backward(gate_up_T2F, swiglu.swiglu(gate_up_T2F))

    def projections(self) -> None:
        """The linear layers with fixed tiles, in the order in which tokens meet them."""
        shape = self.shape
        for width, features in (
            (shape.channels, shape.width),
            (shape.width, shape.all_heads * shape.head_dim),
            (shape.heads * shape.head_dim, shape.width),
            (shape.width, 2 * shape.mlp),
            (shape.mlp, shape.width),
            (shape.width, shape.channels),
        ):
            linear_fixed_tiles.linear_fixed_tiles(
                self._tensor(self.counts.tokens, width),
                self._tensor(features, width),
                self._tensor(features),
            )

    def sampler(self) -> None:
        """Guidance and update, with fresh noise and without."""
        tokens, channels = self.counts.tokens, self.shape.channels
        velocity_TK = self._tensor(2 * tokens, channels)
        x_TsK, memory_TsK, noise_TsK = (
            self._tensor(tokens, channels, dtype=torch.float32) for _ in range(3)
        )
        rows_S8 = self._tensor(self.counts.sequences, 8, dtype=torch.float32)
        tail = (self.row_T, self.row_T, rows_S8, self.row_T, 3 * channels // 4)
        for noise in (None, noise_TsK):
            guided_step.guided_step(x_TsK, velocity_TK, memory_TsK, noise, *tail)
            guided_step.guided_step_backward(
                x_TsK, memory_TsK, velocity_TK, *tail, noise is not None
            )

    def _tensor(self, *sizes: int, dtype: torch.dtype | None = None) -> Tensor:
        return torch.empty(sizes, dtype=dtype or self.dtype, device="meta")
