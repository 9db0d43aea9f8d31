"""Where an autoencoder lies: a folder of its own, or the vae/ of a bundle.

Knows folder names. Knows nothing of what an autoencoder is.
"""

from pathlib import Path

from fit_models.bundle import EMBEDDED, MODEL_INDEX, bundle_folder


def autoencoder_folder(path: Path) -> Path:
    """Return the autoencoder's folder in diffusers' layout (config.json and safetensors).

    `path` is such a folder, a bundle or another pipeline of diffusers with a vae/, or "embedded".
    Raises `ValueError` when nothing is there.
    """
    if str(path) == EMBEDDED:
        return bundle_folder(EMBEDDED) / "vae"
    if not path.is_dir():
        raise ValueError(f"autoencoder: no such folder: {path}")
    return path / "vae" if (path / MODEL_INDEX).is_file() else path
