"""EfficientNet-lite0, for looking at images: features to compare sets and to align with.

Knows the network (Tan & Le, arXiv:1905.11946; the "lite" variant has ReLU6 and neither
squeeze-and-excitation nor swish) and the key names of the released weights. Knows nothing of what
the features are used for. Inference only: batch norms are folded into the convolutions on loading.

Dimension key: B images, C channels.
"""

from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

FEATURE_DIM = 1280
STRIDE = 32
INPUT_SIZE = 224
# expansion, channels, repeats, stride, kernel size: table 1 of the paper (B0), stem 32, head 1280.
STAGES = (
    (1, 16, 1, 1, 3),
    (6, 24, 2, 2, 3),
    (6, 40, 2, 2, 5),
    (6, 80, 3, 2, 3),
    (6, 112, 3, 1, 5),
    (6, 192, 4, 2, 5),
    (6, 320, 1, 1, 3),
)
STEM_CHANNELS = 32
NUM_CLASSES = 1000
BATCH_NORM_EPS = 1e-3  # TensorFlow's EfficientNet value, not PyTorch's default


class SameConvolution(nn.Conv2d):
    """Convolution padded as TensorFlow's SAME: output side = ceil(side / stride).

    At stride 2 and an even side the extra pixel goes to the right and bottom.
    """

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's own argument name
        """Map [B, C_in, height, width] to [B, C_out, ceil(height / s), ceil(width / s)]."""
        kernel, stride = self.kernel_size[0], self.stride[0]
        if stride == 1:
            return F.conv2d(input, self.weight, self.bias, 1, kernel // 2, 1, self.groups)
        before_after = []
        for side in (input.shape[-1], input.shape[-2]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            before_after += [total // 2, total - total // 2]
        padded = F.pad(input, before_after)
        return F.conv2d(padded, self.weight, self.bias, stride, 0, 1, self.groups)


class InvertedResidual(nn.Module):
    """Expand, filter each channel, project; with a shortcut where the shape stays."""

    def __init__(self, in_dim: int, out_dim: int, expansion: int, stride: int, kernel: int) -> None:
        super().__init__()
        dim = in_dim * expansion
        self.expand = SameConvolution(in_dim, dim, 1) if expansion > 1 else None
        self.depthwise = SameConvolution(dim, dim, kernel, stride, groups=dim)
        self.project = SameConvolution(dim, out_dim, 1)
        self.shortcut = stride == 1 and in_dim == out_dim

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, in_dim, height, width] to [B, out_dim, height / stride, width / stride]."""
        hidden = x if self.expand is None else F.relu6(self.expand(x))
        hidden = self.project(F.relu6(self.depthwise(hidden)))
        return x + hidden if self.shortcut else hidden


class FeatureNetwork(nn.Module):
    """EfficientNet-lite0; its input [B, 3, height, width] is that of `network_input`."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = SameConvolution(3, STEM_CHANNELS, 3, 2)
        self.blocks = nn.ModuleList()
        in_dim = STEM_CHANNELS
        for expansion, channels, repeats, stride, kernel in STAGES:
            for repeat in range(repeats):
                step = stride if repeat == 0 else 1
                self.blocks.append(InvertedResidual(in_dim, channels, expansion, step, kernel))
                in_dim = channels
        self.head = SameConvolution(in_dim, FEATURE_DIM, 1)
        self.classifier = nn.Linear(FEATURE_DIM, NUM_CLASSES)

    def spatial(self, x: Tensor) -> Tensor:
        """Return the head's activations [B, 1280, ceil(height / 32), ceil(width / 32)]."""
        x = F.relu6(self.stem(x))
        for block in self.blocks:
            x = block(x)
        return F.relu6(self.head(x))

    def pooled(self, x: Tensor) -> Tensor:
        """Return the mean of the head's activations over the image, [B, 1280]."""
        return self.spatial(x).mean(dim=(2, 3))

    def forward(self, x: Tensor) -> Tensor:
        """Return the ImageNet logits [B, 1000]."""
        return self.classifier(self.pooled(x))


def network_input(images: Tensor) -> Tensor:
    """Scale uint8 or float images [B, 3, height, width] with values 0 to 255 for the network."""
    return (images.float() - 127.0) / 128.0


def load_feature_network(path: Path) -> FeatureNetwork:
    """Read the released weights (float16 safetensors) into a network in evaluation mode, float32.

    Raises `ValueError` when the file is absent or its tensors are not exactly the network's.
    """
    if not path.is_file():
        raise ValueError(f"feature network: no such weights file: {path}")
    released = load_file(path)
    network = FeatureNetwork().eval().requires_grad_(False)
    state: dict[str, Tensor] = {}
    for ours, convolution, norm in _convolution_names():
        weight, bias = _folded(released, convolution, norm, path)
        state[f"{ours}.weight"], state[f"{ours}.bias"] = weight, bias
    for name in ("weight", "bias"):
        state[f"classifier.{name}"] = _taken(released, f"_fc.{name}", path).float()
    if released:
        raise ValueError(f"feature network: unknown tensors in {path}: {sorted(released)[:5]}")
    for name, parameter in network.state_dict().items():
        if state[name].shape != parameter.shape:
            raise ValueError(
                f"feature network: {name} in {path} has shape {tuple(state[name].shape)}, "
                f"not {tuple(parameter.shape)}"
            )
    network.load_state_dict(state, strict=True)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _convolution_names() -> Iterator[tuple[str, str, str]]:
    """Yield our convolution, the release's convolution and the release's batch norm behind it."""
    yield "stem", "_conv_stem", "_bn0"
    index = 0
    for expansion, _, repeats, _, _ in STAGES:
        for _ in range(repeats):
            ours, theirs = f"blocks.{index}", f"_blocks.{index}"
            if expansion > 1:
                yield f"{ours}.expand", f"{theirs}._expand_conv", f"{theirs}._bn0"
            yield f"{ours}.depthwise", f"{theirs}._depthwise_conv", f"{theirs}._bn1"
            yield f"{ours}.project", f"{theirs}._project_conv", f"{theirs}._bn2"
            index += 1
    yield "head", "_conv_head", "_bn1"


def _folded(
    released: dict[str, Tensor], convolution: str, norm: str, path: Path
) -> tuple[Tensor, Tensor]:
    """Return weight and bias of a convolution with the batch norm behind it folded in."""
    weight = _taken(released, f"{convolution}.weight", path).float()
    mean = _taken(released, f"{norm}.running_mean", path).float()
    variance = _taken(released, f"{norm}.running_var", path).float()
    gain = _taken(released, f"{norm}.weight", path).float()
    shift = _taken(released, f"{norm}.bias", path).float()
    _taken(released, f"{norm}.num_batches_tracked", path)
    scale = gain * torch.rsqrt(variance + BATCH_NORM_EPS)
    return weight * scale[:, None, None, None], shift - mean * scale


def _taken(released: dict[str, Tensor], name: str, path: Path) -> Tensor:
    if name not in released:
        raise ValueError(f"feature network: {path} lacks the tensor {name}")
    return released.pop(name)
