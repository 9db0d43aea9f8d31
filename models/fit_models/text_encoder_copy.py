"""A language model's folder, copied into a bundle as its `text_encoder/` and `tokenizer/`.

Knows files of transformers' layout; loads no weights.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fit_models.text_encoder import TEXT_ENCODER, TOKENIZER, check_channels

_CONFIG = "config.json"
_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "tokenizer.model",
    "added_tokens.json",
    "vocab.json",
    "merges.txt",
)


def copy_text_encoder(source: Path, channels: int, bundle: Path) -> None:
    """Copy configuration, weights and tokenizer.

    Args:
        source: a folder with all of them, as on the hub; or one that has `text_encoder/` and
            `tokenizer/`, as a pipeline of diffusers.
        channels: width of the states that the network reads.
        bundle: folder that gets `text_encoder/` and `tokenizer/`.

    Raises:
        ValueError: something is missing, weights are no safetensors, or the width is another.
    """
    check_text_encoder(source, channels)
    model, tokenizer = _parts(source)
    _copy([model / _CONFIG, *_weights(model)], bundle / TEXT_ENCODER)
    known = (tokenizer / name for name in _TOKENIZER_FILES)
    _copy([path for path in known if path.is_file()], bundle / TOKENIZER)


def check_text_encoder(source: Path, channels: int) -> None:
    """Refuse what `copy_text_encoder` would.

    Raises:
        ValueError: see there.
    """
    model, tokenizer = _parts(source)
    if not (model / _CONFIG).is_file():
        raise ValueError(f"text_encoder: {model} holds no {_CONFIG}")
    if not _weights(model):
        raise ValueError(
            f"text_encoder: {model} holds no *.safetensors; weights in other files are not read"
        )
    if not any((tokenizer / name).is_file() for name in ("tokenizer.json", "tokenizer.model")):
        raise ValueError(f"text_encoder: {tokenizer} holds no tokenizer.json")
    try:
        width = json.loads((model / _CONFIG).read_text(encoding="utf-8"))["hidden_size"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"text_encoder: {model / _CONFIG} says no hidden_size") from error
    check_channels(width, channels)


def _parts(source: Path) -> tuple[Path, Path]:
    """Where the language model and where the tokenizer is."""
    if (source / TEXT_ENCODER).is_dir():
        return source / TEXT_ENCODER, source / TOKENIZER
    return source, source


def _weights(folder: Path) -> list[Path]:
    return sorted((*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")))


def _copy(files: list[Path], destination: Path) -> None:
    destination.mkdir(parents=True, exist_ok=True)
    for path in files:
        shutil.copyfile(path, destination / path.name)
