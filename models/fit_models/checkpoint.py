"""Weights on disk: strict, memory-mapped, safetensors only.

Knows file layouts (one file, or shards with an index) and the names inside; not what bundles are.
A network is made on the meta device, so its memory is taken once, by the weights themselves.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
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
        network: its parameters are replaced; buffers must be in the files too.
        source: a `.safetensors` file, or a folder with one or with shards and their index.
        device: where the weights go.
        dtype: of the floating-point weights in memory; those whose names end as the network's
            `float32_weights` say stay float32.

    Raises:
        ValueError: a file is absent or broken, or a name or shape does not match exactly.
    """
    stored = map_tensors(weight_files(source))
    tensors = {key.removeprefix("module."): tensor for key, tensor in stored.items()}
    check_names(network, tensors, source)
    del stored  # each tensor goes once it is converted
    exact = tuple(getattr(network, "float32_weights", ()))
    for key, tensor in tensors.items():
        wanted = torch.float32 if key.endswith(exact) and exact else dtype
        tensors[key] = converted(tensor, wanted).to(device)
    network.load_state_dict(tensors, strict=True, assign=True)


def map_tensors(files: Sequence[Path]) -> dict[str, Tensor]:
    """The tensors of safetensors files by their names there; memory-mapped, not copied.

    Raises:
        ValueError: a file is broken, or two of them hold the same name.
    """
    tensors: dict[str, Tensor] = {}
    for path in files:
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                for key in file.keys():  # noqa: SIM118 - safe_open is no mapping
                    if key in tensors:
                        raise ValueError(f"weights: {key} is in {path} and in a shard before it")
                    tensors[key] = file.get_tensor(key)
        except SafetensorError as error:
            raise ValueError(
                f"weights: {path} is not a readable safetensors file: {error}"
            ) from error
    return tensors


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
    return indexed_files(source / INDEX)


def indexed_files(index: Path) -> list[Path]:
    """The shards that an index names, all of them beside it.

    Raises:
        ValueError: the index has no usable map, or names a file that is not there, or one outside.
    """
    folder = index.parent
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ValueError(f"weights: {index} has no usable weight_map") from error
    files = [folder / name for name in sorted(str(name) for name in names)]
    for path in files:
        if path.parent != folder:  # a link inside the folder is fine: model caches are made of them
            raise ValueError(f"weights: {index.name} names {str(path)!r}, outside its folder")
        if not path.is_file():
            raise ValueError(f"weights: {index.name} names {path.name}, which is not in {folder}")
    return files


def save_weights(
    state: Mapping[str, Tensor],
    folder: Path,
    dtype: torch.dtype | None,
    max_shard_bytes: int = DEFAULT_SHARD_BYTES,
) -> list[Path]:
    """Write a state dict into a folder, in shards with an index where one file would be too large.

    Args:
        state: converted shard by shard, so that one shard is held twice at most.
        folder: is made.
        dtype: of what is written; None keeps that of each tensor.
        max_shard_bytes: a larger tensor has a shard of its own.

    Returns:
        the files written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    shards = _plan_shards(state, dtype, max_shard_bytes)
    for stale in (WEIGHTS, INDEX):  # of the other layout, which a reader might find first
        (folder / stale).unlink(missing_ok=True)
    stem = WEIGHTS.removesuffix(".safetensors")
    paths, weight_map, total = [], {}, 0
    for number, keys in enumerate(shards, start=1):
        numbered = f"{stem}-{number:05d}-of-{len(shards):05d}.safetensors"
        path = folder / (WEIGHTS if len(shards) == 1 else numbered)
        total += save_tensors({key: state[key] for key in keys}, path, dtype)
        weight_map.update(dict.fromkeys(keys, path.name))
        paths.append(path)
    if len(shards) > 1:
        index = {"metadata": {"total_size": total}, "weight_map": weight_map}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")
    return paths


def save_tensors(tensors: Mapping[str, Tensor], path: Path, dtype: torch.dtype | None) -> int:
    """Write one safetensors file; dtype None keeps that of each tensor.

    Returns:
        bytes of all tensors, as written.
    """
    written = {
        key: converted(tensor.detach().to("cpu"), dtype).contiguous()
        for key, tensor in tensors.items()
    }
    save_file(written, path, metadata={"format": "pt"})
    path.chmod(0o644)  # the library writes for the owner alone; a server often is somebody else
    return sum(tensor.nbytes for tensor in written.values())


def converted(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    """The tensor in a dtype if it holds floating-point numbers; packed bytes stay what they are."""
    return tensor.to(dtype or tensor.dtype) if tensor.is_floating_point() else tensor


def _plan_shards(
    state: Mapping[str, Tensor], dtype: torch.dtype | None, max_shard_bytes: int
) -> list[list[str]]:
    shards: list[list[str]] = [[]]
    size = 0
    for key, tensor in state.items():
        wanted = dtype if dtype is not None and tensor.is_floating_point() else tensor.dtype
        num_bytes = tensor.numel() * wanted.itemsize
        if shards[-1] and size + num_bytes > max_shard_bytes:
            shards.append([])
            size = 0
        shards[-1].append(key)
        size += num_bytes
    return shards


def check_names(network: nn.Module, tensors: Mapping[str, Tensor], source: Path) -> None:
    """Refuse tensors that are not exactly a network's, by name and by shape.

    Raises:
        ValueError: names are missing or unexpected, or a shape differs; the message says which.
    """
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
