"""Shapes tell a configuration where they can; relatives and strangers are turned away by name."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from fit_models.config import HR_ROPE, NAMED_CONFIGS, ModelConfig, RopeConfig
from fit_models.networks.fitv2 import FiTv2
from fit_models.released.recognition import recognise
from support.golden import load_family
from support.official import config_from_official

Shapes = dict[str, tuple[int, ...]]
TOY = NAMED_CONFIGS["FiTv2-toy/2"]
GOLDEN = load_family("fitv2")


def shapes_of(config: ModelConfig) -> Shapes:
    with torch.device("meta"):
        return {key: tuple(value.shape) for key, value in FiTv2(config).state_dict().items()}


@pytest.mark.parametrize("size", NAMED_CONFIGS)
def test_every_named_size_is_recognised(size: str):
    config = NAMED_CONFIGS[size]
    found = recognise(shapes_of(config), config.in_channels, hr=config.rope == HR_ROPE)
    assert (found.config, found.size) == (config, size)


@pytest.mark.parametrize("num_classes", [1, 30, 2000])
def test_the_number_of_classes_is_free(num_classes: int):
    config = replace(TOY, num_classes=num_classes)
    found = recognise(shapes_of(config), 4)
    assert (found.config, found.size) == (config, "FiTv2-toy/2")


def test_hr_without_a_name_is_the_same_size_with_another_rope():
    found = recognise(shapes_of(TOY), 4, hr=True)
    assert found.config == replace(TOY, rope=HR_ROPE)
    assert found.size is None
    assert RopeConfig("ntk-aware", decouple=True, ori_max_pe_len=16) == HR_ROPE


@pytest.mark.parametrize("model", ["tiny", "small"])
def test_the_authors_own_shapes_need_only_the_heads(model: str):
    with pytest.raises(ValueError, match=r"^num_heads: .* give --num-heads"):
        recognise(GOLDEN.shapes(model), 4)
    wanted = config_from_official(GOLDEN.config(model), {})
    found = recognise(GOLDEN.shapes(model), 4, num_heads=wanted.num_heads)
    assert (found.config, found.size) == (wanted, None)


def test_other_heads_than_a_named_size_s_make_another_network():
    found = recognise(shapes_of(TOY), 4, num_heads=4)
    assert (found.config, found.size) == (replace(TOY, num_heads=4), None)
    for wrong, message in ((5, "not a multiple of num_heads 5"), (0, "must be at least 1")):
        with pytest.raises(ValueError, match=message):
            recognise(shapes_of(TOY), 4, num_heads=wrong)


@pytest.mark.parametrize(("channels", "patch"), [(4, 1), (16, 1), (1, 4), (3, 2)])
def test_the_autoencoder_s_channels_tell_the_patch(channels: int, patch: int):
    config = replace(TOY, in_channels=channels, patch_size=patch, guided_channels=min(3, channels))
    found = recognise(shapes_of(config), channels, num_heads=2)
    assert found.config == config


@pytest.mark.parametrize("mlp_ratio", [1.0, 2.5, 3.3, 4.0, 6.0, 11 / 7])
@pytest.mark.parametrize("width", [48, 52, 100, 1148])
def test_the_mlp_is_as_wide_as_its_tensors(width: int, mlp_ratio: float):
    config = replace(TOY, hidden_size=width, depth=1, mlp_ratio=mlp_ratio, num_heads=1)
    shapes = shapes_of(config)
    found = recognise(shapes, 4, num_heads=1)
    assert isinstance(found.config, ModelConfig)
    assert found.config.mlp_hidden == config.mlp_hidden
    assert shapes_of(found.config) == shapes


def test_the_first_strange_names_are_listed():
    strange = {f"layer{i}.conv.weight": (3, 3) for i in range(7)}
    with pytest.raises(
        ValueError, match=r"'layer0\.conv\.weight', .*layer4.* and 2 more"
    ) as caught:
        recognise(strange, 4)
    assert "layer5" not in str(caught.value)
    for extra in ("blocks.0.attn.q_norm.weight", "module.pos_embed"):
        with pytest.raises(ValueError, match=f"not FiTv2, which has no '{extra}';"):
            recognise({**shapes_of(TOY), extra: (3,)}, 4)


def without(shapes: Shapes, start: str) -> Shapes:
    return {key: shape for key, shape in shapes.items() if not key.startswith(start)}


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({}, "not a whole FiTv2; missing x_embedder"),
        (without(shapes_of(TOY), "y_emb"), "missing y_embedder.embedding_table.weight"),
        (without(shapes_of(replace(TOY, depth=4)), "blocks.2."), "there is no block 2"),
        ({**shapes_of(TOY), "blocks.999999999999.attn.proj.bias": (48,)}, "there is no block 2"),
        (
            {**shapes_of(TOY), "x_embedder.proj.weight": (48, 17)},
            "17 channels, which are no square",
        ),
        ({**shapes_of(TOY), "x_embedder.proj.weight": (48, 8)}, "8 channels, which are no square"),
        ({**shapes_of(TOY), "x_embedder.proj.weight": (48, 2)}, "2 channels, which are no square"),
        ({**shapes_of(TOY), "x_embedder.proj.weight": (48, 4, 2, 2)}, "not a matrix's"),
        ({**shapes_of(TOY), "blocks.0.mlp.fc1_g.weight": (0, 48)}, "not a matrix's"),
        ({**shapes_of(TOY), "y_embedder.embedding_table.weight": (1, 48)}, "the last is no class"),
    ],
)
def test_shapes_that_contradict_one_another_are_refused(changed: Shapes, message: str):
    with pytest.raises(ValueError, match=message):
        recognise(changed, 4, num_heads=2)
