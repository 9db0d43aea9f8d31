"""Released tensors say which Lumina network they belong to; diffusers' names lead back to ours."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fit_models.networks.flag_dit import FlagDiT
from fit_models.networks.flag_dit_config import NAMED_FLAG_DIT_CONFIGS, FlagDiTConfig
from fit_models.networks.lumina_next import LuminaNext
from fit_models.networks.lumina_next_config import NAMED_LUMINA_NEXT_CONFIGS, LuminaNextConfig
from fit_models.networks.lumina_next_diffusers import (
    diffusers_state,
    official_name,
    official_state,
)
from fit_models.networks.lumina_recognition import Shapes, lumina_config, lumina_family
from fit_models.networks.lumina_t2i import LuminaT2I
from fit_models.networks.lumina_t2i_config import NAMED_LUMINA_T2I_CONFIGS
from fit_models.networks.next_dit import NextDiT
from fit_models.networks.next_dit_config import NAMED_NEXT_DIT_CONFIGS
from support.golden import load_family


def shapes_of(network: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}


def test_every_named_size_is_recognised() -> None:
    with torch.device("meta"):
        for config in NAMED_FLAG_DIT_CONFIGS.values():
            assert lumina_config(shapes_of(FlagDiT(config)), config.prediction) == config
        for config in NAMED_NEXT_DIT_CONFIGS.values():
            assert lumina_config(shapes_of(NextDiT(config))) == config
        for config in NAMED_LUMINA_NEXT_CONFIGS.values():
            assert lumina_config(shapes_of(LuminaNext(config))) == config
        for config in NAMED_LUMINA_T2I_CONFIGS.values():
            assert lumina_config(shapes_of(LuminaT2I(config))) == config


@pytest.mark.parametrize(
    ("golden", "family"),
    [
        ("flag_dit", "flag-dit"),
        ("large_dit", "flag-dit"),
        ("next_dit", "next-dit"),
        ("lumina_next", "lumina-next"),
        ("lumina_t2i", "lumina-t2i"),
    ],
)
def test_every_recorded_model_is_recognised(golden: str, family: str) -> None:
    recorded = load_family(golden)
    for model in recorded.model_names():
        shapes, official = recorded.shapes(model), recorded.config(model)
        assert lumina_family(shapes) == family
        config = lumina_config(shapes, "velocity", official["n_heads"])
        assert config.hidden_size == official["dim"]
        assert config.depth == official["n_layers"]
        assert config.key_heads == (official["n_kv_heads"] or official["n_heads"])
        assert config.qk_norm == official["qk_norm"]


def without(shapes: Shapes, part: str) -> Shapes:
    return {name: shape for name, shape in shapes.items() if part not in name}


def test_what_cannot_be_told_or_served_is_said() -> None:
    flag, text = load_family("flag_dit").shapes("tiny"), load_family("lumina_next").shapes("tiny")
    mlp = {"layers.0.feed_forward.w1.weight": (300, 64)}
    refused: list[tuple[Shapes, str]] = [
        (flag, "say 'velocity' for Flag-DiT or 'noise' for Large-DiT"),
        (without(text, "attention_norm2"), "before 2024-05-31"),
        ({"layers.0.attention.qkv.weight": (1, 1)}, "Lumina-Image 2.0"),
        (without(flag, "y_embedder"), "has captions, or labels"),
        (without(flag, "wk"), "not a whole Lumina network; missing layers.0.attention.wk.weight"),
        (load_family("next_dit").shapes("tiny"), "no named size has hidden_size 96 and depth 3"),
    ]
    for shapes, message in refused:
        with pytest.raises(ValueError, match=message):
            lumina_config(shapes)
    with pytest.raises(ValueError, match=r"w1.weight has shape \[300, 64\], not \[256, 64\]"):
        lumina_config({**flag, **mlp}, "noise", 4)
    with pytest.raises(ValueError, match="num_heads is 5; it must divide hidden_size 64"):
        lumina_config(flag, "noise", 5)
    assert isinstance(lumina_config(flag, "noise", 4), FlagDiTConfig)


def test_names_of_diffusers_lead_to_the_original_and_back() -> None:
    config = LuminaNextConfig(hidden_size=64, depth=2, num_heads=4, caption_channels=24)
    state = LuminaNext(config).state_dict()
    theirs = diffusers_state(state)
    back = official_state(theirs)
    assert sorted(back) == sorted(state)
    assert all(torch.equal(back[name], state[name]) for name in state)
    with pytest.raises(ValueError, match="diffusers' copy of Lumina-Next"):
        lumina_family({name: tuple(tensor.shape) for name, tensor in theirs.items()})
    theirs["layers.1.attn2.to_q.weight"] = theirs["layers.1.attn2.to_q.weight"] + 1.0
    with pytest.raises(ValueError, match=r"layers.1.attn2.to_q.weight is not the same as"):
        official_state(theirs)
    with pytest.raises(ValueError, match=r"layers.0.norm3.weight is no tensor of diffusers'"):
        official_name("layers.0.norm3.weight")
    with pytest.raises(ValueError, match=r"layers.0.norm3.weight is no tensor of Lumina-Next"):
        diffusers_state({"layers.0.norm3.weight": torch.zeros(1)})


def test_diffusers_copy_has_exactly_its_tensors() -> None:
    with torch.device("meta"):
        state = LuminaNext(NAMED_LUMINA_NEXT_CONFIGS["Lumina-Next-2B"]).state_dict()
    theirs = diffusers_state(state)
    assert (sum(tensor.numel() for tensor in theirs.values()), len(theirs)) == (1_754_898_976, 639)
    assert theirs["time_caption_embed.caption_embedder.0.weight"].shape == (2048,)
    assert theirs["pad_token"].shape == (2304,)
