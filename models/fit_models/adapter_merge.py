"""Adapters taken into the weights they were made for, so that serving them costs nothing.

Knows which weights change and how, and when an adapter does not fit; not files or bundles.

Dimension key: I inputs, O outputs, r rank, D width.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from fit_models.adapter import DOWN, NEW_ROWS, UP, Adapter, fingerprint_of
from fit_models.networks.fitv2 import FiTv2


def merge_adapter(network: FiTv2, adapter: Adapter) -> None:
    """Add an adapter's changes to a plain network's weights, and its classes to the label table.

    Sums are float32, whatever the weights are. The new rows come before the null label's, which
    stays the last; `network.config` has more classes then. Which base the adapter is for is not
    asked, so that several can follow each other: see `merge_adapters`.

    Raises:
        ValueError: names or shapes do not fit the network; it is unchanged then.
    """
    _check_shapes(network, adapter)
    for name, linear in _changed_layers(network, adapter):
        down_rI, up_Or = (
            adapter.weights[f"{name}.{part}"].to(linear.weight.device, torch.float32)
            for part in (DOWN, UP)
        )
        merged_OI = linear.weight.detach().float() + adapter.config.scale * (up_Or @ down_rI)
        linear.weight = _frozen(merged_OI.to(linear.weight.dtype))
    if adapter.config.class_names:
        table = network.y_embedder.embedding_table
        old = table.weight.detach()
        rows = torch.cat((old[:-1], adapter.weights[NEW_ROWS].to(old), old[-1:]))
        table.weight, table.num_embeddings = _frozen(rows), len(rows)
        network.config = replace(network.config, num_classes=len(rows) - 1)


def merge_adapters(
    network: FiTv2, adapters: Sequence[Adapter], class_names: tuple[str, ...]
) -> tuple[str, ...]:
    """Merge adapters that were all made for this network as it is now.

    Args:
        network: changed in place.
        adapters: changes of the same weight add up; new classes follow in this order.
        class_names: of the network's labels.

    Returns:
        the class names of the labels that the network then has.

    Raises:
        ValueError: an adapter is for another base, or brings a class that is there already.
    """
    fingerprint = fingerprint_of(network.state_dict()) if adapters else ""
    for adapter in adapters:
        _check_shapes(network, adapter)
        config = adapter.config
        if config.base_fingerprint != fingerprint:
            raise ValueError(
                f"adapter {adapter.name!r} was made for another base: for {config.base_name!r} "
                f"with fingerprint {config.base_fingerprint[:12]}, not {fingerprint[:12]}"
            )
        taken = {_comparable(name) for name in class_names}
        if known := [name for name in config.class_names if _comparable(name) in taken]:
            raise ValueError(f"adapter {adapter.name!r}: class {known[0]!r} is there already")
        class_names += config.class_names
    for adapter in adapters:
        merge_adapter(network, adapter)
    return class_names


def _changed_layers(network: FiTv2, adapter: Adapter) -> list[tuple[str, nn.Linear]]:
    layers = []
    for block in range(network.config.depth):
        for target in adapter.config.targets:
            name = f"blocks.{block}.{target}"
            linear = network.get_submodule(name)
            assert type(linear) is nn.Linear, f"{name} is adapted or laid out for serving"
            layers.append((name, linear))
    return layers


def _check_shapes(network: FiTv2, adapter: Adapter) -> None:
    config = adapter.config
    wanted = {}
    for name, linear in _changed_layers(network, adapter):
        wanted[f"{name}.{DOWN}"] = (config.rank, linear.in_features)
        wanted[f"{name}.{UP}"] = (linear.out_features, config.rank)
    if config.class_names:
        wanted[NEW_ROWS] = (len(config.class_names), network.config.hidden_size)
    found = {name: tuple(tensor.shape) for name, tensor in adapter.weights.items()}
    for name in sorted(wanted.keys() | found.keys()):
        if wanted.get(name) != found.get(name):
            raise ValueError(
                f"adapter {adapter.name!r} does not fit the network: {name} has shape "
                f"{_said(found.get(name))}, the network needs {_said(wanted.get(name))}"
            )


def _comparable(name: str) -> str:
    """A class name as clients may write it: case, spaces, underscores and hyphens do not count."""
    return re.sub(r"[\s_-]+", "", name).casefold()


def _said(shape: tuple[int, ...] | None) -> str:
    return "none" if shape is None else str(list(shape))


def _frozen(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
