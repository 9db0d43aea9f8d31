"""An autoencoder's folder, copied into a bundle.

Knows the two files of diffusers' layout; not what the numbers in them do (`autoencoder.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fit_models.autoencoder import WEIGHTS_NAME, Autoencoder


def copy_autoencoder(
    source: Path, destination: Path, shift: float = 0.0, scale: float = 1.0
) -> None:
    """Copy config and weights; the copy's latents are (the source's - shift) * scale.

    The source's latents are what it encodes to, after a shift and a scale that its own config may
    hold: the copy's config says both moves as one.

    Args:
        source: folder in diffusers' layout.
        destination: folder of the copy, is made.
        shift, scale: what a network was trained on, from what the source encodes to.

    Raises:
        ValueError: the source lacks one of the two files.
    """
    for name in ("config.json", WEIGHTS_NAME):
        if not (source / name).is_file():
            raise ValueError(f"autoencoder: {source} holds no {name}")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # where it lay on the machine that saved it
    if (shift, scale) != (0.0, 1.0):
        own = Autoencoder.from_folder(source)  # it knows what a silent config means
        config["shift_factor"] = own.shift_factor + shift / own.scaling_factor
        config["scaling_factor"] = own.scaling_factor * scale
    destination.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / WEIGHTS_NAME, destination / WEIGHTS_NAME)
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    (destination / "config.json").write_text(text, encoding="utf-8")
