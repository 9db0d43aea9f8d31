"""The autoencoder that learns: its shape, the weights it starts from, and its exported folder.

Knows diffusers' `AutoencoderTiny` and its files. Knows nothing of learning.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn

from fit_models.autoencoder import WEIGHTS_NAME

EXPORT_NAME = "export"
LATENT_CHANNELS = 4


@dataclass(frozen=True)
class PartShape:
    """One half of the student: channels in all its stages, and residual blocks of each stage."""

    width: int
    blocks: tuple[int, int, int, int]


DECODER_SHAPE = PartShape(width=48, blocks=(4, 4, 3, 0))
"""No block at full size: an activation there costs half the time of all others."""
ENCODER_SHAPE = PartShape(width=32, blocks=(1, 2, 2, 2))


def new_student(decoder: PartShape, encoder: PartShape) -> Any:
    """Make a `diffusers.AutoencoderTiny` with random weights, latents at 1/8 of the size."""
    from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny

    return AutoencoderTiny(
        decoder_block_out_channels=(decoder.width,) * 4,
        num_decoder_blocks=decoder.blocks,
        encoder_block_out_channels=(encoder.width,) * 4,
        num_encoder_blocks=encoder.blocks,
        latent_channels=LATENT_CHANNELS,
    )


def load_start(student: Any, folder: Path) -> None:
    """Give a student the weights of an autoencoder in diffusers' layout.

    Raises `ValueError` if there is none or its tensors are not exactly the student's.
    """
    path = folder / WEIGHTS_NAME
    if not path.is_file():
        raise ValueError(f"start: {folder} holds no {WEIGHTS_NAME}")
    weights, wanted = load_file(path), student.state_dict()
    for name in sorted(weights.keys() ^ wanted.keys()):
        other = "lacks" if name in wanted else "has"
        raise ValueError(f"start: {folder} {other} {name}; the shape of a run cannot be changed")
    for name, tensor in weights.items():
        if tensor.shape != wanted[name].shape:
            raise ValueError(
                f"start: {name} in {folder} has shape {tuple(tensor.shape)}, "
                f"that of this run is {tuple(wanted[name].shape)}"
            )
    student.load_state_dict(weights)


def export_student(student: Any, folder: Path) -> Path:
    """Write a student to `folder/export` as float16, in diffusers' layout; return that folder.

    The student itself becomes float16.
    """
    partial, exported = folder / f"{EXPORT_NAME}.partial", folder / EXPORT_NAME
    nn.Module.to(student, dtype=torch.float16)
    student.save_pretrained(partial)
    _drop_repeated_entry(partial / "config.json")
    exported.mkdir(exist_ok=True)
    for path in sorted(partial.iterdir()):
        path.replace(exported / path.name)
    partial.rmdir()
    return exported


def _drop_repeated_entry(path: Path) -> None:
    """Take out what `AutoencoderTiny` saves but warns of when it loads; it sets that one itself."""
    described = json.loads(path.read_text())
    del described["block_out_channels"]
    path.write_text(json.dumps(described, indent=2, sort_keys=True) + "\n")
