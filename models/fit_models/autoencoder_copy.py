"""An autoencoder's folder, copied into a bundle.

Knows the two files of diffusers' layout; not what the numbers in them do (`autoencoder.py`).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fit_models.autoencoder import WEIGHTS_NAME


def copy_autoencoder(
    source: Path, destination: Path, shift: float | None = None, scale: float | None = None
) -> None:
    """Copy config and weights; the copy's latents are (raw - shift) * scale.

    Args:
        source: folder in diffusers' layout.
        destination: folder of the copy, is made.
        shift, scale: None keeps what the source's config says.

    Raises:
        ValueError: the source lacks one of the two files.
    """
    for name in ("config.json", WEIGHTS_NAME):
        if not (source / name).is_file():
            raise ValueError(f"autoencoder: {source} holds no {name}")
    config = json.loads((source / "config.json").read_text(encoding="utf-8"))
    config.pop("_name_or_path", None)  # where it lay on the machine that saved it
    if shift is not None:
        config["shift_factor"] = shift
    if scale is not None:
        config["scaling_factor"] = scale
    destination.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source / WEIGHTS_NAME, destination / WEIGHTS_NAME)
    text = json.dumps(config, indent=1, sort_keys=True) + "\n"
    (destination / "config.json").write_text(text, encoding="utf-8")
