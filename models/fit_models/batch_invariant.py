"""A network whose bits for a sequence do not depend on who shares the packed batch with it.

Libraries choose tiles, and whether to split a sum, by the number of rows. With fixed tiles in every
linear layer, and operators and attention of our own, a batch still goes through the network at
once. (On a CPU the last elements of an elementwise loop are rounded otherwise than those before
them, so that there only tensors of one sequence alone will do: the engine's packer sees to it.)

Modulation rows come from `StackedModulation.rows_one_by_one`. Equal bits are promised for one
process on one machine: another number of threads, or another GPU, may round otherwise.

Dimension key: T packed tokens, D width, F features.
"""

from __future__ import annotations

from torch import Tensor, nn

from fit_kernels import linear_fixed_tiles
from fit_kernels.attention import chosen_attention
from fit_kernels.backend import current_backend
from fit_models.families import Network, TextNetwork, placement
from fit_models.joined import join_projections


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


def fixed_tiles_obstacle(network: Network) -> str | None:
    """Why fixed tiles would not make a network's bits independent of the batch; None if they do.

    Only our kernels are known to work on a sequence alike wherever it lies. Of the attentions,
    grouped joins sequences of equal length, and the others promise nothing.

    Raises:
        ValueError: the attention asked for does not take this network.
    """
    if (backend := current_backend()) != "fused":
        return f"operators are {backend}; they must be fused"
    if isinstance(network, TextNetwork):
        return "attention to captions joins sequences of equal length"
    device, dtype = placement(network)
    attention = chosen_attention(dtype, device, network.config.head_dim)
    return None if attention == "fused" else f"attention is {attention}; it must be fused"
