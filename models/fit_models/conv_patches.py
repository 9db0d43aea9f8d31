"""A patch embedder whose weights are released as those of a convolution.

A convolution with stride equal to its kernel is one linear map of a patch. Its kernel
[D, C, p, p] read end to end is that map's matrix over (channel, row, column), which is the order of
our tokens (`fit_models.patches`): nothing is permuted, only folded. So the layer is an `nn.Linear`
like any other, and its weight is 4-D in the state dict only.

Dimension key: T packed tokens, D width, C latent channels, p patch size, K = C p p.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from fit_models.layers import PatchEmbedder

_WEIGHT = "proj.weight"


class ConvPatchEmbedder(PatchEmbedder):
    """Token channels to width, under a convolution's name and shape: [T, K] -> [T, D]."""

    def __init__(self, in_channels: int, patch_size: int, hidden_size: int) -> None:
        super().__init__(in_channels * patch_size**2, hidden_size)
        self.kernel_shape = (in_channels, patch_size, patch_size)
        self.register_state_dict_post_hook(_as_kernel)
        self.register_load_state_dict_pre_hook(_as_matrix)


def _as_kernel(embedder: nn.Module, state: dict[str, Any], prefix: str, _metadata: Any) -> None:
    assert isinstance(embedder, ConvPatchEmbedder), embedder
    key = prefix + _WEIGHT
    state[key] = state[key].unflatten(1, embedder.kernel_shape)


def _as_matrix(
    embedder: nn.Module, state: dict[str, Any], prefix: str, *_what_hooks_get: Any
) -> None:
    """Fold a kernel of the right shape; any other is left for the loader to refuse."""
    assert isinstance(embedder, ConvPatchEmbedder), embedder
    kernel = state.get(prefix + _WEIGHT)
    if kernel is not None and tuple(kernel.shape[1:]) == embedder.kernel_shape:
        state[prefix + _WEIGHT] = kernel.flatten(1)
