"""Shapes of the networks whose launches are compiled.

Imports go one way, so the sizes that `fit_models.config` names are repeated here; the row stride is
that of the wide table of all blocks' modulation, as the server keeps it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Shape:
    """What decides the kernels of one network.

    Attributes:
        name: what the table calls it.
        width: D, values of a token.
        heads, key_heads: H of the queries, G of keys and values.
        head_dim: E.
        mlp: F, width of the gated MLP.
        depth: blocks; with the width it makes the row stride.
        channels: K, values of a token outside the network.
        norm: of the tokens, "layer" or "rms".
        with_shift: modulation adds a shift.
        qk_norm: of queries and keys, "layer", "rms" or "none".
        affine_qk: that norm has weight and bias.
        interleaved: rotary pairs lie side by side, else half a head apart.
    """

    name: str
    width: int
    heads: int
    head_dim: int
    mlp: int
    depth: int
    key_heads: int = 0
    channels: int = 16
    norm: str = "layer"
    with_shift: bool = True
    qk_norm: str = "layer"
    affine_qk: bool = False
    interleaved: bool = True

    @property
    def all_heads(self) -> int:
        """X, heads of the joint projection."""
        return self.heads + 2 * (self.key_heads or self.heads)

    @property
    def row_stride(self) -> int:
        """M, values of a row of modulation: six vectors a block, two of the final layer."""
        return self.width * (6 * self.depth + 2)


_XL = Shape("FiTv2-XL/2", width=1152, heads=16, head_dim=72, mlp=3072, depth=36)
_DIT_L = Shape("DiT-L/2", width=1024, heads=16, head_dim=64, mlp=4096, depth=24)

SHAPES = (
    Shape("FiTv2-Ti/2", width=256, heads=4, head_dim=64, mlp=682, depth=6),
    Shape("FiTv2-S/2", width=384, heads=6, head_dim=64, mlp=1024, depth=12),
    Shape("FiTv2-B/2", width=768, heads=12, head_dim=64, mlp=2048, depth=15),
    _DIT_L,
    _XL,
    Shape("FiTv2-3B/2", width=2304, heads=24, head_dim=96, mlp=6144, depth=40),
    # What other families do differently, each at one width.
    replace(_XL, name="XL-rms-unshifted", norm="rms", with_shift=False, qk_norm="rms"),
    replace(_XL, name="XL-half-split-plain", interleaved=False, qk_norm="none"),
    replace(_XL, name="XL-half-split", interleaved=False),
    replace(_XL, name="XL-affine", affine_qk=True),
    replace(_DIT_L, name="L-grouped", key_heads=4, qk_norm="rms", affine_qk=True),
)


@dataclass(frozen=True)
class TernaryShape:
    """What decides the ternary products of one network.

    Attributes:
        name: what the table calls it.
        width: D, values of a token.
        mlp: F, width of the gated MLP.
        condition: A, values of the conditioning vector.
    """

    name: str
    width: int
    mlp: int
    condition: int = 1024


TERNARY_SHAPES = (
    TernaryShape("TerDiT-600M/2", width=1536, mlp=4096),
    TernaryShape("TerDiT-4.2B/2", width=3072, mlp=8192),
)
