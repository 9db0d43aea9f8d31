"""What the blocks of the FID's Inception-v3 are made of, as tables.

Knows names, channels and kernels (Szegedy et al., arXiv:1512.00567, figures 5 to 7; the tensor
names are torchvision's). Knows nothing of tensors.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# A convolution is (name, channels, kernel); a branch is a chain of them, one after the other. A
# tuple of convolutions at its end is a fork, whose outputs stand side by side.
Kernel = int | tuple[int, int]
Convolution = tuple[str, int, Kernel]
Branch = tuple[Convolution | tuple[Convolution, Convolution], ...]


@dataclass(frozen=True)
class BlockPlan:
    """Branches that see the same input, and a pooling branch behind them.

    Attributes:
        branches: their outputs stand side by side, in this order.
        pooling: "average" or "max".
        pool_channels: of the 1 x 1 convolution behind the pooling; None: there is none.
        halves: the last convolution of a branch and the pooling take every second place, unpadded.
    """

    branches: tuple[Branch, ...]
    pooling: str
    pool_channels: int | None
    halves: bool = False


def _plan_35(pool_channels: int) -> BlockPlan:
    five = (("branch5x5_1", 48, 1), ("branch5x5_2", 64, 5))
    threes = (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3))
    return BlockPlan(((("branch1x1", 64, 1),), five, threes), "average", pool_channels)


def _plan_17(inner: int) -> BlockPlan:
    row, column = (1, 7), (7, 1)
    seven = (
        ("branch7x7_1", inner, 1),
        ("branch7x7_2", inner, row),
        ("branch7x7_3", 192, column),
    )
    sevens = (
        ("branch7x7dbl_1", inner, 1),
        ("branch7x7dbl_2", inner, column),
        ("branch7x7dbl_3", inner, row),
        ("branch7x7dbl_4", inner, column),
        ("branch7x7dbl_5", 192, row),
    )
    return BlockPlan(((("branch1x1", 192, 1),), seven, sevens), "average", 192)


def _plan_8(pooling: str) -> BlockPlan:
    row, column = (1, 3), (3, 1)
    three = (
        ("branch3x3_1", 384, 1),
        (("branch3x3_2a", 384, row), ("branch3x3_2b", 384, column)),
    )
    threes = (
        ("branch3x3dbl_1", 448, 1),
        ("branch3x3dbl_2", 384, 3),
        (("branch3x3dbl_3a", 384, row), ("branch3x3dbl_3b", 384, column)),
    )
    return BlockPlan(((("branch1x1", 320, 1),), three, threes), pooling, 192)


_TO_17 = BlockPlan(
    (
        (("branch3x3", 384, 3),),
        (("branch3x3dbl_1", 64, 1), ("branch3x3dbl_2", 96, 3), ("branch3x3dbl_3", 96, 3)),
    ),
    "max",
    None,
    halves=True,
)
_TO_8 = BlockPlan(
    (
        (("branch3x3_1", 192, 1), ("branch3x3_2", 320, 3)),
        (
            ("branch7x7x3_1", 192, 1),
            ("branch7x7x3_2", 192, (1, 7)),
            ("branch7x7x3_3", 192, (7, 1)),
            ("branch7x7x3_4", 192, 3),
        ),
    ),
    "max",
    None,
    halves=True,
)
BLOCKS: Mapping[str, tuple[int, BlockPlan]] = {
    "Mixed_5b": (192, _plan_35(32)),
    "Mixed_5c": (256, _plan_35(64)),
    "Mixed_5d": (288, _plan_35(64)),
    "Mixed_6a": (288, _TO_17),
    "Mixed_6b": (768, _plan_17(128)),
    "Mixed_6c": (768, _plan_17(160)),
    "Mixed_6d": (768, _plan_17(160)),
    "Mixed_6e": (768, _plan_17(192)),
    "Mixed_7a": (768, _TO_8),
    "Mixed_7b": (1280, _plan_8("average")),
    "Mixed_7c": (2048, _plan_8("max")),
}
SPATIAL_BLOCK = "Mixed_6d"


def convolutions_of(
    step: Convolution | tuple[Convolution, Convolution],
) -> tuple[Convolution, ...]:
    """Give the one convolution of a step, or the two of a fork."""
    return (step,) if isinstance(step[0], str) else step  # pyright: ignore[reportReturnType]
