"""An adapter on disk: low-rank changes of a network's weights, and rows for new classes.

    adapter_config.json         rank, alpha, what is changed, new class names, which base it is for
    adapter_model.safetensors   the matrices, under PEFT's names

Knows the folder, its names and the fingerprint of a base; not how adapters are trained
(`adapted_network.py`) or taken into a network (`adapter_merge.py`).
Source: LoRA (arXiv:2106.09685).

Dimension key: I inputs, O outputs, r rank, D width.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

ADAPTER_WEIGHTS = "adapter_model.safetensors"
ADAPTER_CONFIG = "adapter_config.json"
TARGETS = ("attn.qkv", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc2")
"""The linear layers of a block that an adapter changes."""
DOWN, UP = "lora_A.weight", "lora_B.weight"
NEW_ROWS = "y_embedder.new_rows.weight"
_PREFIX = "base_model.model."


@dataclass(frozen=True)
class AdapterConfig:
    """What an adapter is, beside its matrices.

    Attributes:
        rank: r of the matrices.
        alpha: the change of a weight is alpha / rank times their product.
        targets: of `TARGETS`, the layers that are changed in every block.
        class_names: of the new rows of the label table, in order.
        base_name: name of the bundle it was made for, for people.
        base_fingerprint: `fingerprint_of` that bundle's weights.
    """

    rank: int
    alpha: float
    base_name: str
    base_fingerprint: str
    class_names: tuple[str, ...] = ()
    targets: tuple[str, ...] = TARGETS

    def __post_init__(self) -> None:
        if self.rank < 1:
            raise ValueError(f"adapter r is {self.rank}; it must be at least 1")
        if unknown := sorted(set(self.targets) - set(TARGETS)):
            raise ValueError(
                f"adapter target_modules {unknown} are unknown; known: {', '.join(TARGETS)}"
            )
        if len(set(self.class_names)) != len(self.class_names):
            raise ValueError(f"adapter class_names {list(self.class_names)}: each must be once")

    @property
    def scale(self) -> float:
        """Factor on the product of the two matrices."""
        return self.alpha / self.rank


@dataclass(frozen=True)
class Adapter:
    """A trained adapter.

    Attributes:
        name: of its folder, as the served model's name shows it.
        config: what it is.
        weights: `blocks.N.TARGET.lora_A.weight` [r, I], `blocks.N.TARGET.lora_B.weight` [O, r] and,
            with new classes, `y_embedder.new_rows.weight` [classes, D].
    """

    name: str
    config: AdapterConfig
    weights: Mapping[str, Tensor]


def is_adapter_weight(name: str) -> bool:
    """Whether a name of an adapted network's state dict is the adapter's, not the base's."""
    return name == NEW_ROWS or name.endswith((f".{DOWN}", f".{UP}"))


def fingerprint_of(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of names, shapes and values of a base; weights of an adapter among them are left out.

    Values count as rounded to bfloat16, so that a base is the same whatever precision it is
    loaded in.
    """
    digest = hashlib.sha256()
    for name in sorted(weights):
        if is_adapter_weight(name):
            continue
        tensor = weights[name].detach()
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        coarse = tensor.to("cpu", torch.bfloat16).contiguous().flatten()
        digest.update(coarse.view(torch.int16).numpy().data)
    return digest.hexdigest()


def save_adapter(folder: Path, config: AdapterConfig, weights: Mapping[str, Tensor]) -> None:
    """Write an adapter's folder; weights as `adapter_state` gives them, kept in float32."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{_PREFIX}{name}": tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in weights.items()
    }
    save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    (folder / ADAPTER_WEIGHTS).chmod(0o644)  # the library writes for the owner alone
    values = {
        "peft_type": "LORA",
        "r": config.rank,
        "lora_alpha": config.alpha,
        "target_modules": list(config.targets),
        "bias": "none",
        "base_model_name_or_path": config.base_name,
        "base_fingerprint": config.base_fingerprint,
        "class_names": list(config.class_names),
    }
    text = json.dumps(values, indent=1) + "\n"
    (folder / ADAPTER_CONFIG).write_text(text, encoding="utf-8")


def load_adapter(folder: str | Path) -> Adapter:
    """Read an adapter's folder; its weights come to the CPU.

    Raises:
        ValueError: a file is missing or unreadable, or says what cannot be.
    """
    folder = Path(folder).expanduser()
    config = _read_config(folder / ADAPTER_CONFIG)
    path = folder / ADAPTER_WEIGHTS
    try:
        tensors = load_file(path)
    except FileNotFoundError:
        raise ValueError(f"adapter: {path} is missing") from None
    except SafetensorError as error:
        raise ValueError(f"adapter: {path} is not a readable safetensors file: {error}") from error
    weights = {name.removeprefix(_PREFIX): tensor for name, tensor in tensors.items()}
    return Adapter(folder.resolve().name, config, weights)


def _read_config(path: Path) -> AdapterConfig:
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return AdapterConfig(
            rank=int(values["r"]),
            alpha=float(values["lora_alpha"]),
            base_name=str(values["base_model_name_or_path"]),
            base_fingerprint=str(values["base_fingerprint"]),
            class_names=_names(values, "class_names"),
            targets=_names(values, "target_modules"),
        )
    except FileNotFoundError:
        raise ValueError(f"adapter: {path} is missing") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"adapter: {path} is not JSON: {error}") from error
    except KeyError as error:
        raise ValueError(f"adapter: {path} lacks {error}") from None
    except (TypeError, ValueError) as error:
        raise ValueError(f"adapter: {path} does not fit: {error}") from error


def _names(values: Mapping[str, Any], key: str) -> tuple[str, ...]:
    if not isinstance(values[key], list):
        raise ValueError(f"{key} is {values[key]!r}; it must be a list")
    return tuple(str(name) for name in values[key])
