"""Released weights of any family: which one, its configuration, and tensors under our names.

Knows whom to ask; each family's marks are its own file's (`recognition.py` for FiTv2,
`relatives.py`, `fit_models.networks.dit_diffusers`).
"""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from fit_kernels.ternary_weights import pack_ternary, ternarised
from fit_models.families import NetworkConfig, TextConfig, empty_network, family_of
from fit_models.networks.dit_diffusers import PORT_MARK, config_of_diffusers, weights_of_diffusers
from fit_models.networks.lumina_next_diffusers import LUMINA_PORT_MARK, official_state
from fit_models.networks.lumina_recognition import CAPTIONS_MARK, lumina_config
from fit_models.released.recognition import Recognised, recognise
from fit_models.released.relatives import dit_config, fitv1_config, is_dit, is_fitv1
from fit_models.released.state_dict import ReleasedWeights
from fit_models.ternary import TernaryLinear

PREDICTIONS = ("noise", "velocity")


def choose_family(
    weights: ReleasedWeights,
    source: Path,
    latent_channels: int,
    num_heads: int | None,
    hr: bool,
    prediction: str,
) -> tuple[Recognised, ReleasedWeights]:
    """Tell whose weights these are.

    Args:
        weights: as read.
        source: where; diffusers' `config.json` lies beside its weights.
        latent_channels: of the autoencoder.
        num_heads: None takes those of the named size with equal shapes.
        hr: rotary embedding of the high-resolution models, for FiT.
        prediction: what a network with DiT's shapes returns, "noise" or "velocity" (SiT).

    Returns:
        the configuration, and the weights under the names of our network.

    Raises:
        ValueError: the tensors are of no family we know, or contradict one another.
    """
    if prediction not in PREDICTIONS:
        raise ValueError(f"prediction is {prediction!r}; known: {', '.join(PREDICTIONS)}")
    weights = _without_lumina_port(weights)
    port = PORT_MARK in weights.tensors
    if port:
        weights = _from_diffusers(weights, source)
    shapes = {name: tuple(tensor.shape) for name, tensor in weights.tensors.items()}
    if CAPTIONS_MARK in shapes:
        config = lumina_config(shapes)
        assert isinstance(config, TextConfig), config
        return Recognised(config, _size_of(config)), weights
    if is_dit(shapes):
        if hr:
            raise ValueError("hr: positions of a DiT are no rotary ones; leave --hr out")
        found = dit_config(shapes, latent_channels, num_heads, prediction, port)
        return Recognised(*found), weights
    if prediction != "noise":
        raise ValueError(f"prediction: {prediction!r} is for weights with DiT's shapes only")
    if is_fitv1(shapes):
        return Recognised(*fitv1_config(shapes, latent_channels, num_heads, hr)), weights
    return recognise(shapes, latent_channels, num_heads, hr), weights


def as_configured(
    weights: ReleasedWeights, config: NetworkConfig
) -> tuple[Recognised, ReleasedWeights]:
    """Take a person's word for what the weights are; names and shapes are checked later.

    Float weights of ternary layers become what they are trained to be, two bits each.
    """
    weights = _without_lumina_port(weights)
    tensors = dict(weights.tensors)
    for name, module in empty_network(config).named_modules():
        weight = tensors.get(f"{name}.weight")
        if not isinstance(module, TernaryLinear) or weight is None:
            continue
        if weight.is_floating_point():
            tensors[f"{name}.weight"] = pack_ternary(ternarised(weight.float()))
    return Recognised(config, _size_of(config)), replace(weights, tensors=tensors)


def _size_of(config: NetworkConfig) -> str | None:
    named = family_of(config).named_configs
    return next((name for name, each in named.items() if each == config), None)


def _without_lumina_port(weights: ReleasedWeights) -> ReleasedWeights:
    """Diffusers' copy of Lumina-Next under the original's names; others as they are."""
    if LUMINA_PORT_MARK not in weights.tensors:
        return weights
    tensors = official_state(weights.tensors)
    return replace(weights, tensors=tensors, stripped=(*weights.stripped, "diffusers' layout"))


def _from_diffusers(weights: ReleasedWeights, source: Path) -> ReleasedWeights:
    folder = source if source.is_dir() else source.parent
    path = folder / "config.json"
    if not path.is_file():
        raise ValueError(
            f"weights: diffusers' DiT has its configuration beside it, but there is no {path}"
        )
    try:
        config = config_of_diffusers(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"weights: {path} is not JSON: {error}") from error
    return replace(
        weights,
        tensors=weights_of_diffusers(weights.tensors, config),
        stripped=(*weights.stripped, "diffusers' layout"),
    )
