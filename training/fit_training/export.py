"""A finished run becomes a bundle: averaged weights, an autoencoder, what requests get by default.

Knows checkpoints and bundle folders. Knows nothing of how good the model is (`evaluate.py`) and
takes the sampling defaults as given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from fit_models.autoencoder_copy import copy_autoencoder
from fit_models.bundle import MODEL_INDEX, SamplingDefaults, save_bundle
from fit_models.checkpoint import INDEX
from fit_models.families import samplers_of
from fit_training.loop.checkpoints import is_checkpoint, load_newest_checkpoint, read_checkpoint
from fit_training.loop.trained_networks import TrainedConfig, trained_config

_WANTED = ("config", "averaged", "latents", "progress")
_BUNDLE_CONFIGS = ("config.json", "scheduler_config.json", INDEX)


@dataclass(frozen=True)
class FinishedRun:
    """What a checkpoint says about the model in it.

    Attributes:
        model_config: of the network.
        weights: the averaged ones, fp32, under the network's own names.
        class_names: in label order; empty where the run took every prepared class.
        latent_shift: training took it from raw latents,
        latent_scale: and multiplied by this.
        images_seen: so far.
    """

    model_config: TrainedConfig
    weights: dict[str, Tensor]
    class_names: tuple[str, ...]
    latent_shift: float
    latent_scale: float
    images_seen: int


def read_run(checkpoint: Path) -> FinishedRun:
    """Read a checkpoint, or the newest good one of a run's folder.

    Raises:
        ValueError: there is none, it is damaged, or it is not of `fit-serve train`.
    """
    if not checkpoint.is_dir():
        raise ValueError(f"checkpoint: no such folder: {checkpoint}")
    state = read_checkpoint(checkpoint) if is_checkpoint(checkpoint) else _newest(checkpoint)
    if missing := [key for key in _WANTED if key not in state]:
        raise ValueError(f"checkpoint: {checkpoint} lacks {missing}; it is none of fit-serve train")
    if "base" in state:
        raise ValueError(
            f"checkpoint: {checkpoint} is of fit-serve post-train, which writes what is served "
            "itself, into its output folder"
        )
    weights = state["averaged"]
    num_classes = weights["y_embedder.embedding_table.weight"].shape[0] - 1
    shift, scale = state["latents"]
    return FinishedRun(
        model_config=trained_config(state["config"]["model"], num_classes),
        weights=weights,
        class_names=tuple(state["config"]["classes"]),
        latent_shift=float(shift),
        latent_scale=float(scale),
        images_seen=int(state["progress"][3]),
    )


def export_bundle(
    checkpoint: Path,
    autoencoder: Path,
    destination: Path,
    name: str,
    class_names: Sequence[str] = (),
    defaults: SamplingDefaults | None = None,
    guided_channels: int | None = None,
    sampler: str = "",
) -> FinishedRun:
    """Write a bundle that `fit_models.bundle.load_bundle` reads; other files there stay.

    Args:
        checkpoint: its folder, or the folder of a run.
        autoencoder: folder in diffusers' layout whose latents the run was trained on. Its copy gets
            the run's shift and scale, so that decoding undoes what training did to raw latents.
        destination: folder of the bundle.
        name: of the model, as clients see it.
        class_names: in label order; those of the run's config if empty.
        defaults: what a request gets where it does not say; the class's own if None.
        guided_channels: latent channels that guidance changes; the network's own if None.
        sampler: of the defaults; that of `defaults`, or the network's first, if empty.

    Returns:
        what was read from the checkpoint.

    Raises:
        ValueError: a file is missing or unreadable, the class names do not match the network, the
            sampler is not for it, or the destination already holds a bundle.
    """
    if (destination / MODEL_INDEX).exists():
        raise ValueError(f"destination: {destination} already holds a bundle")
    run = read_run(checkpoint)
    names = tuple(class_names) or run.class_names
    config = run.model_config
    if len(names) != config.num_classes:
        raise ValueError(f"class_names: {len(names)} names for {config.num_classes} labels")
    if guided_channels is not None:
        config = replace(config, guided_channels=guided_channels)
    known, defaults = samplers_of(config), defaults or SamplingDefaults()
    if sampler or defaults.sampler not in known:
        defaults = replace(defaults, sampler=sampler or known[0])
    if defaults.sampler not in known:
        raise ValueError(f"sampler is {defaults.sampler!r}; this network's: {', '.join(known)}")
    copy_autoencoder(autoencoder, destination / "vae", run.latent_shift, run.latent_scale)
    save_bundle(destination, name, config, run.weights, names, defaults)
    return run


def remove_bundle(folder: Path) -> None:
    """Delete the files a bundle consists of, and nothing else, so that another can take its place.

    Raises:
        ValueError: the folder holds no bundle.
    """
    if not (folder / MODEL_INDEX).is_file():
        raise ValueError(f"destination: {folder} holds no bundle")
    (folder / MODEL_INDEX).unlink()  # first: half a bundle is none
    for part in ("transformer", "vae", "scheduler"):
        for path in (folder / part).glob("*"):
            if path.suffix == ".safetensors" or path.name in _BUNDLE_CONFIGS:
                path.unlink()


def _newest(folder: Path) -> dict[str, Any]:
    state = load_newest_checkpoint(folder)
    if state is None:
        raise ValueError(f"checkpoint: {folder} holds no checkpoint-*")
    return state
