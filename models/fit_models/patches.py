"""Latents to tokens and back.

A token is one patch as a vector, channel slowest, then row in patch, then column in patch
(FiT's order); tokens of a grid are row-major.

Dimension key: B latents, C latent channels, h, w latent height and width, N tokens,
K token channels.
"""

from __future__ import annotations

from torch import Tensor


def patchify(latents_BChw: Tensor, patch_size: int) -> Tensor:
    """[B, C, h, w] -> [B, N, C * p * p].

    Raises:
        ValueError: height or width is not a multiple of the patch size.
    """
    b, c, height, width = latents_BChw.shape
    p = patch_size
    if height % p or width % p:
        raise ValueError(f"latent {height}x{width} is not a multiple of the patch size {p}")
    x = latents_BChw.reshape(b, c, height // p, p, width // p, p)
    return x.permute(0, 2, 4, 1, 3, 5).reshape(b, (height // p) * (width // p), c * p * p)


def unpatchify(tokens_BNK: Tensor, rows: int, columns: int, patch_size: int) -> Tensor:
    """[B, N, C * p * p] -> [B, C, rows * p, columns * p]; the inverse of `patchify`.

    Raises:
        ValueError: the number of tokens is not rows x columns.
    """
    b, n, k = tokens_BNK.shape
    p = patch_size
    if n != rows * columns:
        raise ValueError(f"{n} tokens do not fill a grid of {rows}x{columns}")
    c = k // (p * p)
    x = tokens_BNK.reshape(b, rows, columns, c, p, p)
    return x.permute(0, 3, 1, 4, 2, 5).reshape(b, c, rows * p, columns * p)
