from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from fit_training.evaluation.measures import extract_features
from fit_training.feature_network import (
    STAGES,
    FeatureNetwork,
    SameConvolution,
    load_feature_network,
    network_input,
)
from fit_training.preparation.sources.opening import open_photographs
from support.feature_weights import invented_weights, write_feature_weights
from support.shared_data import shared_data

Weights = dict[str, Tensor]
IMAGENET_DALMATIAN = 251


@pytest.fixture(scope="module")
def weights() -> Weights:
    return invented_weights()


@pytest.fixture(scope="module")
def network(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> FeatureNetwork:
    path = tmp_path_factory.mktemp("weights") / "features.safetensors"
    return load_feature_network(write_feature_weights(path, weights))


def unfolded_head(weights: Weights, x: Tensor) -> Tensor:
    """The network as it was released: each convolution, then its batch norm, for even sides."""

    def layer(x: Tensor, convolution: str, norm: str, stride: int = 1, depthwise: bool = False):
        weight = weights[f"{convolution}.weight"].float()
        kernel = weight.shape[-1]
        before = (kernel - 1) // 2 if stride == 1 else (kernel - 2) // 2
        x = F.pad(x, (before, kernel // 2, before, kernel // 2))
        x = F.conv2d(x, weight, stride=stride, groups=x.shape[1] if depthwise else 1)
        names = ("running_mean", "running_var", "weight", "bias")
        mean, variance, gain, shift = (weights[f"{norm}.{name}"].float() for name in names)
        return F.batch_norm(x, mean, variance, gain, shift, eps=1e-3)

    x = F.relu6(layer(x, "_conv_stem", "_bn0", 2))
    number = 0
    for expansion, _, repeats, stage_stride, _ in STAGES:
        for repeat in range(repeats):
            block, entry = f"_blocks.{number}.", x
            stride = stage_stride if repeat == 0 else 1
            if expansion > 1:
                x = F.relu6(layer(x, f"{block}_expand_conv", f"{block}_bn0"))
            x = F.relu6(layer(x, f"{block}_depthwise_conv", f"{block}_bn1", stride, depthwise=True))
            x = layer(x, f"{block}_project_conv", f"{block}_bn2")
            x = x + entry if repeat > 0 else x
            number += 1
    return F.relu6(layer(x, "_conv_head", "_bn1"))


def test_folding_the_norms_changes_nothing(network: FeatureNetwork, weights: Weights):
    x = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))
    expected = unfolded_head(weights, x)
    assert expected.std() > 0.1  # the invented weights keep the signal alive
    with torch.inference_mode():
        torch.testing.assert_close(network.spatial(x), expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("sides", [(32, 32), (33, 64), (31, 95)])
def test_the_head_has_one_vector_for_32_pixels_rounded_up(
    network: FeatureNetwork, sides: tuple[int, int]
):
    height, width = sides
    with torch.inference_mode():
        activations = network.spatial(torch.zeros(1, 3, height, width))
    assert activations.shape == (1, 1280, -(-height // 32), -(-width // 32))


@pytest.mark.parametrize("kernel", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("side", [6, 7])
def test_same_padding_is_tensorflows(kernel: int, stride: int, side: int):
    convolution = SameConvolution(1, 1, kernel, stride, bias=False).requires_grad_(False)
    x = torch.randn(1, 1, side, side)
    out_side = -(-side // stride)
    total = max((out_side - 1) * stride + kernel - side, 0)
    before = total // 2  # https://www.tensorflow.org/api_docs/python/tf/nn: the odd one goes after
    padded = torch.zeros(1, 1, side + total, side + total)
    padded[:, :, before : before + side, before : before + side] = x
    expected = F.conv2d(padded, convolution.weight, stride=stride)
    assert expected.shape[-2:] == (out_side, out_side)
    torch.testing.assert_close(convolution(x), expected)


def test_features_and_logits_come_from_the_same_activations(
    network: FeatureNetwork, weights: Weights
):
    x = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        pooled = network.spatial(x).flatten(2).mean(dim=2)
        torch.testing.assert_close(network.pooled(x), pooled)
        logits = pooled @ weights["_fc.weight"].float().T + weights["_fc.bias"].float()
        torch.testing.assert_close(network(x), logits)


def test_the_input_runs_from_minus_one_to_one():
    images = torch.tensor([0, 127, 255], dtype=torch.uint8).reshape(1, 3, 1, 1)
    assert network_input(images).flatten().tolist() == [-127 / 128, 0, 1]


@pytest.mark.parametrize("name", ["_blocks.3._bn1.running_var", "_conv_head.weight", "_fc.bias"])
def test_a_missing_tensor_is_named(tmp_path: Path, weights: Weights, name: str):
    without = {key: value for key, value in weights.items() if key != name}
    path = write_feature_weights(tmp_path / "features.safetensors", without)
    with pytest.raises(ValueError, match=f"lacks the tensor {name}"):
        load_feature_network(path)


def test_an_unknown_tensor_and_a_wrong_shape_are_refused(tmp_path: Path, weights: Weights):
    path = tmp_path / "features.safetensors"
    save_file({**weights, "_blocks.16._bn0.weight": torch.zeros(1)}, path)
    with pytest.raises(ValueError, match=r"unknown tensors .*_blocks\.16\._bn0\.weight"):
        load_feature_network(path)
    save_file({**weights, "_fc.bias": torch.zeros(10)}, path)
    with pytest.raises(ValueError, match=r"classifier\.bias .* \(10,\), not \(1000,\)"):
        load_feature_network(path)


def test_an_absent_file_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="no such weights file"):
        load_feature_network(tmp_path / "absent.safetensors")


def test_the_released_weights_know_dalmatians():
    data = shared_data()
    network = load_feature_network(data / "features" / "efficientnet_lite0_fp16.safetensors")
    with open_photographs(data / "caltech101" / "caltech101_192_val.zip", ["dalmatian"]) as archive:
        opened = [archive.open(photograph) for photograph in archive.photographs]
    images = [torch.from_numpy(np.array(image)).permute(2, 0, 1) for image in opened]
    with torch.inference_mode():
        labels = network.classifier(extract_features(network, images)).argmax(dim=1)
    assert (labels == IMAGENET_DALMATIAN).float().mean() >= 0.8
