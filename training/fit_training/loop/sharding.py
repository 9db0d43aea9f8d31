"""Weights that lie in slices over the processes of a run (FSDP2), and whole again.

Knows which modules are gathered together; not optimizers' rules or the loop. Everything here leaves
the tensors of a single process as they are.

Source: FSDP (arXiv:2304.11277); `torch.distributed.fsdp.fully_shard`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor

from fit_training.loop.processes import Processes
from fit_training.loop.trained_networks import TrainedNetwork


def shard(network: TrainedNetwork, head: nn.Module, processes: Processes) -> None:
    """Cut the parameters of network and head into one slice per process; all had the same before.

    Attention and MLP of a block are gathered when they run. A block's adaLN maps are not: the
    network applies those of all blocks at the start, so they go with the rest of the network.
    """
    if processes.world_size == 1:
        return
    mesh = init_device_mesh(processes.device.type, (processes.world_size,))
    for block in network.blocks:
        for half in (block.attn, block.mlp):
            assert isinstance(half, nn.Module)
            fully_shard(half, mesh=mesh)
    fully_shard(network, mesh=mesh)
    fully_shard(head, mesh=mesh)


def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> float:
    """Scale gradients down to an L2 norm of at most `limit` over all parameters, slices included.

    Returns:
        the norm before.
    """
    with_gradient = [p for p in parameters if p.grad is not None]
    norm = torch.nn.utils.get_total_norm([p.grad for p in with_gradient if p.grad is not None])
    norm = whole(norm)
    torch.nn.utils.clip_grads_with_norm_(with_gradient, limit, norm)
    return float(norm)


def whole(value: Tensor) -> Tensor:
    """A tensor with the slices of all processes; all must ask."""
    return value.full_tensor() if isinstance(value, DTensor) else value


def whole_tree(tree: Any) -> Any:
    """The same for every tensor in nested dicts and lists."""
    if isinstance(tree, dict):
        return {key: whole_tree(value) for key, value in tree.items()}
    if isinstance(tree, list):
        return [whole_tree(value) for value in tree]
    return whole(tree) if isinstance(tree, Tensor) else tree


def sliced_like(value: Tensor, like: Tensor) -> Tensor:
    """A tensor cut as `like` is, of which each process keeps its slice.

    No communication, unless the value lies in slices and `like` is whole: then all must ask.

    Args:
        value: whole, or in slices along its first dimension.
        like: of the same shape.
    """
    if not isinstance(like, DTensor):
        return whole(value)
    if isinstance(value, DTensor):
        assert (value.shape, value.placements) == (like.shape, like.placements)
        return DTensor.from_local(
            value.to_local(),
            like.device_mesh,
            like.placements,
            run_check=False,
            shape=like.shape,
            stride=like.stride(),
        )
    return distribute_tensor(
        value.to(like.device), like.device_mesh, like.placements, src_data_rank=None
    )


def load_weights(module: nn.Module, weights: dict[str, Tensor]) -> None:
    """Load tensors, whole or in slices, into a module, sliced or not; all must ask."""
    current = module.state_dict()
    module.load_state_dict({k: sliced_like(v, current[k]) for k, v in weights.items()})


def load_optimizer(optimizer: torch.optim.Optimizer, saved: dict[str, Any]) -> None:
    """Load an optimizer's state, whole or in slices; moments are cut as their parameters are."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    state = {
        index: {
            name: sliced_like(value, parameters[index])
            if isinstance(value, Tensor) and value.shape == parameters[index].shape
            else value
            for name, value in moments.items()
        }
        for index, moments in saved["state"].items()
    }
    optimizer.load_state_dict({**saved, "state": state})
