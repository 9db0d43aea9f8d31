"""Released weights become a bundle, and a bundle's weights one flat file again.

All is checked before anything is written; what was written is read back and compared before it
takes its place. Weights stay memory-mapped where their container allows.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from fit_models.autoencoder import Autoencoder
from fit_models.autoencoder_copy import copy_autoencoder
from fit_models.bundle import (
    SamplingDefaults,
    bundle_folder,
    load_bundle,
    read_network_config,
    save_bundle,
)
from fit_models.checkpoint import (
    DEFAULT_SHARD_BYTES,
    check_names,
    map_tensors,
    save_tensors,
    weight_files,
)
from fit_models.families import (
    NetworkConfig,
    TextConfig,
    empty_network,
    family_of,
    prediction_of,
    samplers_of,
)
from fit_models.released.family_choice import as_configured, choose_family
from fit_models.released.report import REPORT, describe_source, describe_tensors, differing
from fit_models.released.staging import refuse_existing, staged
from fit_models.released.state_dict import PREFIX, ReleasedWeights, read_released
from fit_models.text_encoder_copy import check_text_encoder, copy_text_encoder


@dataclass(frozen=True)
class BundleOptions:
    """What weights do not say.

    Attributes:
        name: of the model, as clients see it; the destination's if empty.
        class_names: in label order; "class 0" and on if empty.
        config: of the network, where names and shapes are not to be asked; the next three then
            say nothing.
        num_heads: None takes those of the named size with equal shapes.
        hr: rotary embedding of the high-resolution models.
        prediction: of weights with DiT's shapes: "noise", or "velocity" (SiT).
        guided_channels: latent channels that guidance changes; None is three, as released.
        dtype: of the weights as written; None keeps each tensor's own.
        num_inference_steps, guidance_scale: what a request gets where it does not say; None is
            what the family's authors use.
        guidance_interval: likewise.
        sampler: likewise; the family's first if empty.
        text_encoder: folder of the language model, for networks that read captions; see
            `fit_models.text_encoder_copy`.
    """

    name: str = ""
    class_names: tuple[str, ...] = ()
    config: NetworkConfig | None = None
    num_heads: int | None = None
    hr: bool = False
    prediction: str = "noise"
    guided_channels: int | None = None
    dtype: torch.dtype | None = None
    num_inference_steps: int | None = None
    guidance_scale: float | None = None
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    sampler: str = ""
    text_encoder: Path | None = None


def convert_released(
    source: Path,
    destination: Path,
    autoencoder: Path,
    options: BundleOptions,
    allow_pickle: bool = False,
    wrapper: str | None = None,
) -> dict[str, Any]:
    """Write a bundle of a released file.

    Args:
        source, allow_pickle, wrapper: as for `read_released`.
        destination: folder of the bundle; must not exist, or be empty.
        autoencoder: folder in diffusers' layout; its shift and scale are kept.
        options: what weights do not say.

    Returns:
        the report that is also in the bundle, as `conversion.json`.

    Raises:
        ValueError: whatever does not fit; the destination is then as it was.
    """
    refuse_existing(destination)
    latent_channels = Autoencoder.from_folder(autoencoder).latent_channels
    weights = read_released(source, allow_pickle, wrapper)
    if options.config is not None:
        recognised, weights = as_configured(weights, options.config)
    else:
        recognised, weights = choose_family(
            weights, source, latent_channels, options.num_heads, options.hr, options.prediction
        )
    if options.guided_channels is not None:
        config = replace(recognised.config, guided_channels=options.guided_channels)
        recognised = replace(recognised, config=config)
    config = recognised.config
    known, family = samplers_of(config), family_of(config)
    steps, scale = options.num_inference_steps, options.guidance_scale
    defaults = SamplingDefaults(
        family.usual_steps if steps is None else steps,
        family.usual_guidance if scale is None else scale,
        options.guidance_interval,
        options.sampler or known[0],
    )
    if defaults.sampler not in known:
        raise ValueError(
            f"sampler {defaults.sampler!r} is not for this network, which predicts the "
            f"{prediction_of(config)}; known: {', '.join(known)}"
        )
    check_names(empty_network(config), weights.tensors, source)
    class_names = options.class_names or tuple(f"class {i}" for i in range(config.num_classes))
    if len(class_names) != config.num_classes:
        raise ValueError(f"classes: {len(class_names)} names for {config.num_classes} labels")
    captions = _checked_text_encoder(options.text_encoder, config)
    report = describe_source(weights, recognised, options.dtype)
    with staged(destination) as folder:
        copy_autoencoder(autoencoder, folder / "vae")
        if captions is not None:
            copy_text_encoder(*captions, folder)
        save_bundle(
            folder,
            options.name or destination.resolve().name,
            config,
            weights.tensors,
            class_names,
            defaults,
            options.dtype,
            DEFAULT_SHARD_BYTES,
        )
        text = json.dumps(report, indent=1) + "\n"
        (folder / REPORT).write_text(text, encoding="utf-8")
        _verify_bundle(folder, weights, options.dtype)
    return report


def _checked_text_encoder(source: Path | None, config: NetworkConfig) -> tuple[Path, int] | None:
    """Folder and width of the language model of a network that reads captions.

    Raises:
        ValueError: it is needed and not given, or given and not needed, or does not fit.
    """
    family = family_of(config)
    if not isinstance(config, TextConfig):
        if source is not None:
            raise ValueError(f"text_encoder: {family.name} draws classes; leave it out")
        return None
    if source is None:
        raise ValueError(
            f"text_encoder: {family.name} reads captions; name the folder of its language model "
            f"with --text-encoder: {family.text_encoder}, whose owners give it to those who accept "
            "their terms"
        )
    check_text_encoder(source, config.caption_channels)
    return source, config.caption_channels


def flatten_bundle(
    bundle: Path, destination: Path, dtype: torch.dtype | None = None
) -> dict[str, Any]:
    """Write a bundle's network as one safetensors file with the released names.

    Args:
        bundle: folder.
        destination: file; must not exist.
        dtype: None keeps that of each tensor.

    Returns:
        what was written: number of tensors, elements, dtypes.

    Raises:
        ValueError: the bundle does not fit its own configuration, or the destination exists.
    """
    if destination.is_dir():
        raise ValueError(f"destination: {destination} is a folder; a bundle becomes one file")
    refuse_existing(destination)
    folder = bundle_folder(str(bundle))
    network = empty_network(read_network_config(folder))
    stored = map_tensors(weight_files(folder / "transformer"))
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in stored.items()}
    check_names(network, tensors, folder)
    with staged(destination) as path:
        save_tensors({key: tensors[key] for key in network.state_dict()}, path, dtype)
        written = map_tensors([path])
        if wrong := differing(tensors, written, dtype):
            raise ValueError(f"destination: {len(wrong)} tensors read back otherwise: {wrong[:3]}")
        report = describe_tensors(written)
    return report


def _verify_bundle(folder: Path, weights: ReleasedWeights, dtype: torch.dtype | None) -> None:
    """Read back what was written: bit for bit, and as a server would."""
    written = map_tensors(weight_files(folder / "transformer"))
    if wrong := differing(weights.tensors, written, dtype):
        raise ValueError(f"destination: {len(wrong)} tensors read back otherwise: {wrong[:3]}")
    dtypes = {tensor.dtype for tensor in written.values()}
    stored = dtypes.pop() if len(dtypes) == 1 else torch.float32
    mapped = stored if stored in (torch.float32, torch.bfloat16) else torch.float32
    load_bundle(str(folder), "cpu", mapped, lay_out=False)
