"""Weights on disk: strict, memory-mapped, safetensors only.

Knows file layouts (one file, or shards with an index) and the names inside; not what bundles are.
A network is made on the meta device, so its memory is taken once, by the weights themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

WEIGHTS = "diffusion_pytorch_model.safetensors"
INDEX = "diffusion_pytorch_model.safetensors.index.json"
DEFAULT_SHARD_BYTES = 5 * 2**30


def load_weights(
    network: nn.Module, source: Path, device: torch.device | str, dtype: torch.dtype
) -> None:
    """Give a network made on the meta device its weights.

    Args:
        network: its parameters are replaced, its buffers must not exist.
        source: a `.safetensors` file, or a folder with one or with shards and their index.
        device: where the weights go.
        dtype: of the weights in memory.

    Raises:
        ValueError: a file is absent or broken, or a name or shape does not match exactly.
    """
    tensors: dict[str, Tensor] = {}
    for path in weight_files(source):
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    tensors[key.removeprefix("module.")] = file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(
                f"weights: {path} is not a readable safetensors file: {error}"
            ) from error
    _check_names(network, tensors, source)
    for key, tensor in tensors.items():
        tensors[key] = tensor.to(device=device, dtype=dtype)
    network.load_state_dict(tensors, strict=True, assign=True)


def weight_files(source: Path) -> list[Path]:
    """The safetensors files that together hold a network.

    Raises:
        ValueError: nothing is there, or the index names a file that is not, or one outside.
    """
    if source.is_file():
        return [source]
    if (source / WEIGHTS).is_file():
        return [source / WEIGHTS]
    if not (source / INDEX).is_file():
        raise ValueError(f"weights: {source} holds neither {WEIGHTS} nor {INDEX}")
    try:
        names = set(json.loads((source / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (json.JSONDecodeError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"weights: {source / INDEX} has no usable weight_map") from error
    files = [source / str(name) for name in sorted(names)]
    for path in files:
        if path.parent != source:  # a link inside the folder is fine: model caches are made of them
            raise ValueError(f"weights: {INDEX} names {str(path)!r}, outside its folder")
        if not path.is_file():
            raise ValueError(f"weights: {INDEX} names {path.name}, which is not in {source}")
    return files


def save_weights(
    state: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[Path]:
    """Write a state dict into a folder, in shards with an index where one file would be too large.

    Returns:
        the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards: list[dict[str, Tensor]] = [{}]
    size = total = 0
    for key, value in state.items():
        tensor = value.detach().to("cpu", dtype).contiguous()
        if shards[-1] and size + tensor.nbytes > max_shard_bytes:
            shards.append({})
            size = 0
        shards[-1][key] = tensor
        size += tensor.nbytes
        total += tensor.nbytes
    for stale in (WEIGHTS, INDEX):  # of the other layout, which a reader might find first
        (folder / stale).unlink(missing_ok=True)
    if len(shards) == 1:
        _save(shards[0], folder / WEIGHTS)
        return [folder / WEIGHTS]
    stem = WEIGHTS.removesuffix(".safetensors")
    paths, weight_map = [], {}
    for number, shard in enumerate(shards, start=1):
        path = folder / f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        _save(shard, path)
        weight_map.update(dict.fromkeys(shard, path.name))
        paths.append(path)
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return paths


def _save(tensors: dict[str, Tensor], path: Path) -> None:
    save_file(tensors, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library writes for the owner alone; a server often is somebody else


def _check_names(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    wanted = {key: tuple(value.shape) for key, value in network.state_dict().items()}
    missing = sorted(set(wanted) - set(tensors))
    unexpected = sorted(set(tensors) - set(wanted))
    if missing or unexpected:
        raise ValueError(
            f"weights: {source} does not fit the network; missing {missing or 'none'}, "
            f"unexpected {unexpected or 'none'}"
        )
    for key, shape in wanted.items():
        if tuple(tensors[key].shape) != shape:
            raise ValueError(
                f"weights: {key} in {source} has shape {list(tensors[key].shape)}, "
                f"the network needs {list(shape)}"
            )
