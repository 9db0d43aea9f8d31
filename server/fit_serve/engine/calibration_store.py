"""Calibrations on disk: one JSON file for each device, model and way to run it.

A file that is missing, broken or another's is measured again; a folder that cannot be written is a
warning. Neither stops a server.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from fit_kernels.attention import chosen_attention
from fit_kernels.backend import current_backend
from fit_models.bundle import Bundle
from fit_serve.engine.calibration import SECONDS, Calibration, calibrate, device_name

Key = Mapping[str, str | int]

_log = logging.getLogger(__name__)


def key_of(bundle: Bundle, num_threads: int | None = None) -> dict[str, str | int]:
    """All that the time of a step depends on, for the operators and the attention now in use.

    Args:
        bundle: what is served.
        num_threads: torch threads of a step; None and 0 mean the number that is set.

    Raises:
        ValueError: the attention asked for by name cannot run this model.
    """
    count = sum(weight.numel() for weight in bundle.network.parameters())
    config = json.dumps(bundle.model_config.to_dict(), sort_keys=True)
    attention = chosen_attention(bundle.dtype, bundle.device, bundle.model_config.head_dim)
    return {
        "model": bundle.name,
        "fingerprint": _digest(f"{config} {count}"),
        "device": device_name(bundle.device),
        "dtype": str(bundle.dtype).removeprefix("torch."),
        "num_threads": num_threads or torch.get_num_threads(),
        "operators": current_backend(),
        "attention": attention,
        "torch": torch.__version__,
        "triton": _version("triton"),
        "fit-serve": _version("fit-serve"),
    }


def load_or_calibrate(
    bundle: Bundle,
    num_threads: int | None = None,
    seconds: float = SECONDS,
    measure: Callable[[Bundle, int | None, float], Calibration] = calibrate,
) -> Calibration:
    """What is stored for this bundle as it would run now; else measure and store it."""
    key = key_of(bundle, num_threads)
    stored = load(key)
    if stored is not None:
        _log.info("calibration: %s has it, of %s", path_of(key), stored.measured_at)
        return stored
    _log.info("calibration: measuring, for at most about %.0f s", seconds)
    measured = measure(bundle, num_threads, seconds)
    save(key, measured)
    return measured


def load(key: Key) -> Calibration | None:
    """What was saved under this key; None if nothing that can be read and trusted was."""
    path = path_of(key)
    if path is None:
        return None
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(stored, dict) or stored.get("key") != key:
            raise ValueError("it was saved under another key")
        if not isinstance(stored.get("calibration"), dict):
            raise ValueError("it holds no calibration")
        return Calibration.from_dict(stored["calibration"])
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        _log.info("calibration: %s is left aside: %s", path, error)
        return None


def save(key: Key, calibration: Calibration) -> Path | None:
    """Write whole or not at all; the file, or None after a warning that says why there is none."""
    path = path_of(key)
    if path is None:
        _log.warning("calibration is not stored: neither XDG_CACHE_HOME nor a home folder is set")
        return None
    text = json.dumps({"key": dict(key), "calibration": calibration.to_dict()}, indent=1)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f"{path.stem}.", suffix=".tmp")
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                file.write(text + "\n")
            Path(name).replace(path)
        except BaseException:
            with suppress(OSError):
                Path(name).unlink()
            raise
    except OSError as error:
        _log.warning("calibration is not stored, and measured again next time: %s", error)
        return None
    return path


def path_of(key: Key) -> Path | None:
    """Where a calibration of this key is, if there is one; None without a cache folder."""
    folder = _folder()
    return folder and folder / f"{_digest(json.dumps(dict(key), sort_keys=True))}.json"


def _folder() -> Path | None:
    """`$XDG_CACHE_HOME` or `~/.cache`, and ours in it; a relative one is ignored, as XDG says."""
    cache = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not cache.is_absolute():
        try:
            cache = Path.home() / ".cache"
        except RuntimeError:
            return None
    return cache / "fit-serve" / "calibration"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:24]


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
