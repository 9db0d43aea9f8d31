"""The Inception-v3 of the FID: its names and shapes, what it reads and what it hands out."""

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from fit_training.evaluation.inception import (
    InceptionOutputs,
    InceptionV3,
    MixedBlock,
    NormalizedConvolution,
    inception_input,
    resize_as_tensorflow,
)
from fit_training.evaluation.inception_weights import (
    build_inception,
    is_inception,
    read_saved_tensors,
)
from support.inception_weights import invented_inception_weights

# Weight shapes of convolutions in the file pt_inception-2015-12-05-6726825d.pth.
KNOWN_SHAPES = {
    "Conv2d_1a_3x3": (32, 3, 3, 3),
    "Conv2d_2a_3x3": (32, 32, 3, 3),
    "Conv2d_2b_3x3": (64, 32, 3, 3),
    "Conv2d_3b_1x1": (80, 64, 1, 1),
    "Conv2d_4a_3x3": (192, 80, 3, 3),
    "Mixed_5b.branch1x1": (64, 192, 1, 1),
    "Mixed_5b.branch5x5_1": (48, 192, 1, 1),
    "Mixed_5b.branch5x5_2": (64, 48, 5, 5),
    "Mixed_5b.branch3x3dbl_3": (96, 96, 3, 3),
    "Mixed_5b.branch_pool": (32, 192, 1, 1),
    "Mixed_5c.branch_pool": (64, 256, 1, 1),
    "Mixed_5d.branch_pool": (64, 288, 1, 1),
    "Mixed_6a.branch3x3": (384, 288, 3, 3),
    "Mixed_6a.branch3x3dbl_2": (96, 64, 3, 3),
    "Mixed_6b.branch7x7_2": (128, 128, 1, 7),
    "Mixed_6b.branch7x7_3": (192, 128, 7, 1),
    "Mixed_6c.branch7x7dbl_4": (160, 160, 7, 1),
    "Mixed_6d.branch1x1": (192, 768, 1, 1),
    "Mixed_6d.branch7x7dbl_2": (160, 160, 7, 1),
    "Mixed_6e.branch7x7dbl_5": (192, 192, 1, 7),
    "Mixed_7a.branch3x3_2": (320, 192, 3, 3),
    "Mixed_7a.branch7x7x3_4": (192, 192, 3, 3),
    "Mixed_7b.branch1x1": (320, 1280, 1, 1),
    "Mixed_7b.branch3x3_2a": (384, 384, 1, 3),
    "Mixed_7b.branch3x3_2b": (384, 384, 3, 1),
    "Mixed_7c.branch3x3dbl_1": (448, 2048, 1, 1),
    "Mixed_7c.branch_pool": (192, 2048, 1, 1),
}


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return invented_inception_weights()


@pytest.fixture(scope="module")
def network(weights: dict[str, Tensor]) -> InceptionV3:
    return build_inception(weights, "invented")


@pytest.fixture(scope="module")
def images() -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (2, 3, 299, 299), generator=generator, dtype=torch.uint8)


@pytest.fixture(scope="module")
def outputs(network: InceptionV3, images: Tensor) -> InceptionOutputs:
    with torch.inference_mode():
        return network(torch.cat([inception_input(image) for image in images]))


def test_names_and_shapes_are_those_of_the_released_file(weights: dict[str, Tensor]):
    convolutions = [name for name in weights if name.endswith(".conv.weight")]
    assert len(convolutions) == 94
    assert len(weights) == 94 * 5 + 2
    assert sum(tensor.numel() for tensor in weights.values()) == 23_885_392
    for name, shape in KNOWN_SHAPES.items():
        assert weights[f"{name}.conv.weight"].shape == shape
        for part in ("weight", "bias", "running_mean", "running_var"):
            assert weights[f"{name}.bn.{part}"].shape == shape[:1]
    assert weights["fc.weight"].shape == (1008, 2048)
    assert weights["fc.bias"].shape == (1008,)


def test_outputs_have_the_shapes_the_measures_read(outputs: InceptionOutputs):
    assert outputs.pooled.shape == (2, 2048)
    assert outputs.spatial.shape == (2, 2023)
    assert outputs.logits.shape == (2, 1008)
    assert (outputs.pooled[0] - outputs.pooled[1]).abs().max() > 0.01


def test_logits_leave_the_bias_out(network: InceptionV3, outputs: InceptionOutputs):
    torch.testing.assert_close(outputs.logits, F.linear(outputs.pooled, network.fc.weight))
    assert network.fc.bias.abs().max() > 0.1


def test_spatial_features_are_the_first_channels_of_a_branch_row_by_row(
    network: InceptionV3, images: Tensor, outputs: InceptionOutputs
):
    seen: list[Tensor] = []
    branch = network.get_submodule("Mixed_6d.branch1x1")

    def keep(_module: object, _inputs: object, output: Tensor) -> None:
        seen.append(output)

    hook = branch.register_forward_hook(keep)
    with torch.inference_mode():
        network(inception_input(images[0]))
    hook.remove()
    laid_out = outputs.spatial[0].view(17, 17, 7)
    assert torch.allclose(laid_out[5, 11], seen[0][0, :7, 5, 11], atol=1e-5)
    assert torch.allclose(laid_out[16, 0], seen[0][0, :7, 16, 0], atol=1e-5)


class PooledInput:
    """Keeps what a module is given."""

    def __call__(self, _module: object, inputs: tuple[Tensor, ...]) -> None:
        self.seen = inputs[0]


def test_average_pooling_leaves_padding_out_and_the_last_block_takes_the_maximum(
    network: InceptionV3,
):
    x = torch.arange(9.0).view(1, 1, 3, 3)
    for name, corner, centre in (
        ("Mixed_5b", 2.0, 4.0),
        ("Mixed_6e", 2.0, 4.0),
        ("Mixed_7b", 2.0, 4.0),
        ("Mixed_7c", 4.0, 8.0),
    ):
        block = network.get_submodule(name)
        assert isinstance(block, MixedBlock)
        pooled = PooledInput()
        hook = block.branch_pool.register_forward_pre_hook(pooled)
        block(x.expand(1, block.branch_pool.conv.in_channels, 3, 3))
        hook.remove()
        assert pooled.seen[0, 0, 0, 0] == corner, name  # (0 + 1 + 3 + 4) / 4, or the largest
        assert pooled.seen[0, 0, 1, 1] == centre, name


def test_a_convolution_is_normalised_and_rectified_as_worked_by_hand():
    layer = NormalizedConvolution(1, 1, 1).eval()
    with torch.no_grad():
        layer.conv.weight.fill_(2.0)
        layer.bn.running_mean.fill_(1.0)  # pyright: ignore[reportOptionalMemberAccess]
        layer.bn.running_var.fill_(4.0 - 1e-3)  # pyright: ignore[reportOptionalMemberAccess]
        layer.bn.weight.fill_(3.0)
        layer.bn.bias.fill_(-0.5)
        x = torch.tensor([2.0, 0.0]).view(1, 1, 1, 2)
        assert layer(x).flatten().tolist() == pytest.approx([4.0, 0.0])  # (4 - 1) / 2 * 3 - 0.5


def test_resizing_follows_tensorflows_first_version():
    # Place i of three reads place i * 2 / 3 of two: 0, 0.667 and 1.333, which is the last pixel.
    enlarged = resize_as_tensorflow(torch.tensor([[[[0.0, 3.0], [6.0, 12.0]]]]), 3)
    expected = [[0, 2, 3], [4, 22 / 3, 9], [6, 10, 12]]
    torch.testing.assert_close(enlarged[0, 0], torch.tensor(expected), atol=1e-5, rtol=0)
    # Place i of two reads place 1.5 i of three; the rest is not seen.
    shrunk = resize_as_tensorflow(torch.tensor([[[[0.0, 4.0, 10.0]] * 3]]), 2)
    assert shrunk[0, 0].tolist() == [[0.0, 7.0], [0.0, 7.0]]


def test_an_image_of_the_networks_size_is_only_scaled(images: Tensor):
    assert torch.equal(inception_input(images[0])[0], (images[0].float() - 128) / 128)


@pytest.mark.parametrize("legacy", [False, True])
def test_a_saved_file_is_read(weights: dict[str, Tensor], legacy: bool, tmp_path: Path):
    some = {name: weights[name] for name in ("fc.bias", "Conv2d_1a_3x3.conv.weight")}
    path = tmp_path / "weights.pth"
    torch.save(some, path, _use_new_zipfile_serialization=not legacy)
    found = read_saved_tensors(path)
    assert found.keys() == some.keys()
    assert torch.equal(found["fc.bias"], some["fc.bias"])


def test_files_of_something_else_are_refused(tmp_path: Path):
    path = tmp_path / "weights.pth"
    path.write_bytes(b"neither zip nor pickle")
    with pytest.raises(ValueError, match="holds no weights"):
        read_saved_tensors(path)
    torch.save({"step": 3}, path)
    with pytest.raises(ValueError, match="does not hold tensors by name"):
        read_saved_tensors(path)


def test_weights_must_be_the_networks(weights: dict[str, Tensor]):
    assert is_inception(set(weights))
    assert not is_inception({"_conv_stem.weight"})
    lacking = {name: tensor for name, tensor in weights.items() if name != "fc.bias"}
    with pytest.raises(ValueError, match=r"here lacks the tensor fc\.bias"):
        build_inception(lacking, "here")
    with pytest.raises(ValueError, match=r"unknown tensors in here: \['extra'\]"):
        build_inception({**weights, "extra": torch.zeros(1)}, "here")
    with pytest.raises(ValueError, match=r"fc\.bias in here has shape \(1000,\), not \(1008,\)"):
        build_inception({**weights, "fc.bias": torch.zeros(1000)}, "here")
