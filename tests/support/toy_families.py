"""A small network of every family, and a bundle around it that is served like a real one."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fit_kernels.ternary_weights import pack_ternary
from fit_models.bundle import SamplingDefaults
from fit_models.config import NAMED_CONFIGS
from fit_models.families import Network, NetworkConfig, family_of, samplers_of
from fit_models.networks.diffit_config import DiffiTConfig
from fit_models.networks.dimr_config import DiMRConfig, StageConfig
from fit_models.networks.dit_config import DiTConfig
from fit_models.networks.fitv1_config import FiTv1Config
from fit_models.networks.flag_dit_config import FlagDiTConfig
from fit_models.networks.lumina_next_config import LuminaNextConfig
from fit_models.networks.lumina_t2i_config import LuminaT2IConfig
from fit_models.networks.mdt_config import MDTConfig
from fit_models.networks.next_dit_config import NextDiTConfig
from fit_models.networks.terdit_config import TerDiTConfig
from fit_models.ternary import TernaryLinear
from fit_models.text_encoder_copy import copy_text_encoder
from support.toy_bundle import CLASS_NAMES, make_toy_bundle, open_gates
from support.toy_text import CHANNELS, write_toy_text_encoder

_CLASSES = len(CLASS_NAMES)
_GRIDS = ((2, 3), (4, 4), (1, 5), (3, 2))
_DIT = DiTConfig(hidden_size=48, depth=2, num_heads=2, num_classes=_CLASSES, trained_grid=4)
_MDT = MDTConfig(
    hidden_size=48, depth=4, num_heads=2, decode_layer=2, latent_size=8, num_classes=_CLASSES
)
_FLAG = FlagDiTConfig(
    hidden_size=48, depth=2, num_heads=2, num_classes=_CLASSES, trained_side=4, multiple_of=16
)
TOY_CONFIGS: dict[str, NetworkConfig] = {
    "FiTv2": replace(NAMED_CONFIGS["FiTv2-toy/2"], num_classes=_CLASSES),
    "FiTv1": FiTv1Config(hidden_size=48, depth=2, num_heads=2, num_classes=_CLASSES),
    "DiT": _DIT,
    "SiT": replace(_DIT, prediction="velocity"),
    "DiT-fixed-variance": replace(_DIT, learned_variance=False, positions="rescaled"),
    "MDT": _MDT,
    "MDT-v1": replace(_MDT, version=1),
    "DiffiT": DiffiTConfig(
        hidden_size=48, depth=2, num_heads=2, latent_size=8, num_classes=_CLASSES
    ),
    "DiMR": DiMRConfig(
        stages=(
            StageConfig(48, 96, 3, patch_size=2, num_heads=2),
            StageConfig(24, 48, 2, patch_size=1),
        ),
        latent_size=8,
        num_classes=_CLASSES,
    ),
    "FlagDiT": _FLAG,
    "LargeDiT": replace(_FLAG, prediction="noise"),
    "TerDiT": TerDiTConfig(
        hidden_size=48,
        depth=2,
        num_heads=2,
        num_classes=_CLASSES,
        trained_grid=4,
        mlp_multiple=16,
        qk_norm=True,
    ),
    "NextDiT": NextDiTConfig(
        hidden_size=48, depth=2, num_heads=2, num_classes=_CLASSES, multiple_of=16
    ),
    "LuminaNext": LuminaNextConfig(
        hidden_size=48,
        depth=2,
        num_heads=4,
        num_kv_heads=2,
        multiple_of=16,
        caption_channels=CHANNELS,
        trained_side=3,
        proportional_base=9,
    ),
    "LuminaT2I": LuminaT2IConfig(
        hidden_size=48,
        depth=2,
        num_heads=2,
        multiple_of=16,
        caption_channels=CHANNELS,
        trained_side=3,
        proportional_base=12,
    ),
}
TEXT_FAMILIES = ("LuminaNext", "LuminaT2I")


def toy_grids(config: NetworkConfig) -> list[tuple[int, int]]:
    """Some grids that the network can do, unlike ones if it does more than one."""
    family = family_of(config)
    side = family.trained_side(config)
    taken = []
    for grid in (*_GRIDS, (side, side)):
        try:
            family.check_size(*grid, config)
        except ValueError:
            continue
        taken.append(grid)
    return taken[:4]


def toy_network(name: str, seed: int = 0) -> Network:
    """With every gate open and no parameter zero."""
    config = TOY_CONFIGS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = family_of(config).network(config)
        for parameter in network.parameters():
            nn.init.normal_(parameter, mean=float(parameter.dim() == 1), std=0.1)
        open_gates(network)
        for module in network.modules():
            if isinstance(module, TernaryLinear):
                shape = (module.out_features, module.in_features)
                module.weight.copy_(pack_ternary(torch.randint(-1, 2, shape).float()))
                module.alphas.fill_(module.in_features**-0.5)
    return network.eval().requires_grad_(False)


def make_family_bundle(folder: Path, name: str) -> Path:
    """Write a bundle of a family and return its folder."""
    defaults = SamplingDefaults(4, 2.0, sampler=samplers_of(TOY_CONFIGS[name])[0])
    make_toy_bundle(folder, network=toy_network(name), defaults=defaults)
    if name in TEXT_FAMILIES:
        source = toy_text_encoder(folder / "source", name)
        copy_text_encoder(source, CHANNELS, folder)
    return folder


def toy_text_encoder(folder: Path, name: str) -> Path:
    """The kind of language model that the family reads, in a folder as on the hub."""
    return write_toy_text_encoder(folder, llama=name == "LuminaT2I")


def subject_of(name: str, number: int) -> dict[str, Any]:
    """What a request to this family says of what to draw: unlike ones for unlike numbers."""
    if name not in TEXT_FAMILIES:
        return {"class": number % len(CLASS_NAMES)}
    prompt = ("a heron", "", "two kites over a teapot, at dawn")[number % 3]
    return {"prompt": prompt, **({"negative_prompt": "fog"} if number % 4 == 1 else {})}
