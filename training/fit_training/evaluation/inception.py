"""The Inception-v3 of the FID: the network that published figures of generated images stand on.

Knows the graph of 2015-12-05 as it is used for FID (Heusel et al., arXiv:1706.08500), under the
tensor names of its usual port, `pt_inception-2015-12-05-6726825d.pth`: torchvision's. Where it
differs from torchvision's network: 1008 outputs, average pooling that leaves padding out, a
maximum in the pooling branch of the last block. Knows nothing of measures or of other networks.

Dimension key: B images, C channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_training.evaluation.inception_plan import (
    BLOCKS,
    SPATIAL_BLOCK,
    BlockPlan,
    Kernel,
    convolutions_of,
)

INPUT_SIZE = 299
FEATURE_DIM = 2048
NUM_OUTPUTS = 1008
SPATIAL_CHANNELS = 7
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS
BATCH_NORM_EPS = 1e-3  # TensorFlow's value for this graph


class NormalizedConvolution(nn.Module):
    """Convolution without bias, batch norm, ReLU."""

    def __init__(
        self, in_dim: int, out_dim: int, kernel: Kernel, stride: int = 1, padded: bool = True
    ) -> None:
        super().__init__()
        height, width = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (height // 2, width // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(in_dim, out_dim, (height, width), stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(out_dim, eps=BATCH_NORM_EPS)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_dim, height, width] to [B, out_dim, ...]."""
        return F.relu(self.bn(self.conv(x)))


class MixedBlock(nn.Module):
    """The branches of a plan side by side."""

    def __init__(self, in_dim: int, plan: BlockPlan) -> None:
        super().__init__()
        self.plan = plan
        for branch in plan.branches:
            dim = in_dim
            for place, step in enumerate(branch):
                shrinks = plan.halves and place == len(branch) - 1
                stride = 2 if shrinks else 1
                for name, channels, kernel in convolutions_of(step):
                    layer = NormalizedConvolution(dim, channels, kernel, stride, not shrinks)
                    self.add_module(name, layer)
                dim = convolutions_of(step)[0][1]
        if plan.pool_channels is not None:
            self.branch_pool = NormalizedConvolution(in_dim, plan.pool_channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_dim, h, w] to [B, channels of all branches, h, w], or half the sides."""
        outputs = []
        for branch in self.plan.branches:
            parts = [x]
            for step in branch:
                names = [name for name, _, _ in convolutions_of(step)]
                parts = [self.get_submodule(name)(parts[0]) for name in names]
            outputs += parts
        return torch.cat([*outputs, self._pooled(x)], dim=1)

    def _pooled(self, x: Tensor) -> Tensor:
        if self.plan.halves:
            return F.max_pool2d(x, 3, 2)
        if self.plan.pooling == "max":
            return self.branch_pool(F.max_pool2d(x, 3, 1, 1))
        return self.branch_pool(F.avg_pool2d(x, 3, 1, 1, count_include_pad=False))


@dataclass(frozen=True)
class InceptionOutputs:
    """What the measures read.

    Attributes:
        pooled: [B, 2048], `pool_3:0` of the graph; for FID, precision and recall.
        spatial: [B, 2023], for sFID: the first 7 channels of `mixed_6/conv:0`, flattened as the
            graph lays them out: [row, column, channel].
        logits: [B, 1008] without the bias of the last layer, as ADM's Inception Score takes them.
    """

    pooled: Tensor
    spatial: Tensor
    logits: Tensor


class InceptionV3(nn.Module):
    """Its input is that of `inception_input`.

    `mixed_6/conv:0` (ADM's evaluator, arXiv:2105.05233) is the output, after its ReLU, of the 1 x 1
    branch of `Mixed_6d`. That follows from the graph's names: it numbers its blocks mixed, mixed_1,
    ... mixed_10, and the port's Mixed_5b, 5c, ... 7c come in that order, so mixed_6 is the seventh,
    Mixed_6d; in it the node named `conv` is the branch of one convolution, and nodes are named for
    the ReLU. The branch comes first in the block, so these are the block's first channels too. Not
    compared with the TensorFlow graph itself.
    """

    def __init__(self) -> None:
        super().__init__()
        self.Conv2d_1a_3x3 = NormalizedConvolution(3, 32, 3, 2, padded=False)
        self.Conv2d_2a_3x3 = NormalizedConvolution(32, 32, 3, padded=False)
        self.Conv2d_2b_3x3 = NormalizedConvolution(32, 64, 3)
        self.Conv2d_3b_1x1 = NormalizedConvolution(64, 80, 1)
        self.Conv2d_4a_3x3 = NormalizedConvolution(80, 192, 3, padded=False)
        for name, (in_dim, plan) in BLOCKS.items():
            self.add_module(name, MixedBlock(in_dim, plan))
        self.fc = nn.Linear(FEATURE_DIM, NUM_OUTPUTS)

    def forward(self, x: Tensor) -> InceptionOutputs:
        """Map [B, 3, 299, 299] to the outputs."""
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))
        x = F.max_pool2d(x, 3, 2)
        x = F.max_pool2d(self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(x)), 3, 2)
        spatial = x
        for name in BLOCKS:
            x = self.get_submodule(name)(x)
            if name == SPATIAL_BLOCK:
                spatial = x[:, :SPATIAL_CHANNELS]
        pooled = x.mean(dim=(2, 3))
        return InceptionOutputs(
            pooled=pooled,
            spatial=spatial.permute(0, 2, 3, 1).flatten(1),
            logits=pooled @ self.fc.weight.T,
        )


def inception_input(image: Tensor) -> Tensor:
    """Resize a uint8 image [3, height, width] and scale it: [1, 3, 299, 299], (x - 128) / 128."""
    return (resize_as_tensorflow(image[None].float(), INPUT_SIZE) - 128) / 128


def resize_as_tensorflow(images: Tensor, side: int) -> Tensor:
    """Resize [B, C, height, width] to [B, C, side, side] as TensorFlow 1 did: bilinear, simple.

    Place i of the output reads place i * (size / side) of the input: corners are not aligned, there
    are no half-pixel centres, nothing is smoothed when an image shrinks.
    """
    for dim in (3, 2):
        size = images.shape[dim]
        scale = torch.tensor(size, dtype=torch.float32) / side
        places = torch.arange(side, dtype=torch.float32) * scale
        low = places.long().clamp_max(size - 1)
        high = (low + 1).clamp_max(size - 1)
        share = (places - low).to(images.device, images.dtype)
        before = images.index_select(dim, low.to(images.device))
        after = images.index_select(dim, high.to(images.device))
        share = share if dim == 3 else share[:, None]
        images = before + (after - before) * share
    return images
