"""A network with adapters that can be trained: its own weights are frozen, low-rank ones join in.

Knows the layers that stand in for the network's own; the base keeps its state-dict names, and what
is new has those of `adapter.py`. Serving merges adapters instead (`adapter_merge.py`).
Source: LoRA (arXiv:2106.09685).

Dimension key: T packed tokens, S sequences, I inputs, O outputs, r rank, D width, F MLP width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fit_kernels import swiglu
from fit_models.adapter import is_adapter_weight
from fit_models.layers import Block, LabelEmbedder, SwiGLU
from fit_models.networks.fitv2 import FiTv2


class AdaptedLinear(nn.Linear):
    """A frozen linear layer and a low-rank one beside it, which begins at zero."""

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, generator: torch.Generator
    ) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features)
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = scale
        self.lora_A = nn.Linear(linear.in_features, rank, bias=False, device="cpu")
        self.lora_B = nn.Linear(rank, linear.out_features, bias=False, device="cpu")
        nn.init.kaiming_uniform_(self.lora_A.weight, a=math.sqrt(5), generator=generator)
        nn.init.zeros_(self.lora_B.weight)
        self.lora_A.to(linear.weight.device)
        self.lora_B.to(linear.weight.device)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - nn.Linear's name
        """[T, I] -> [T, O]."""
        return F.linear(input, self.weight, self.bias) + self.change(input)

    def change(self, x_TI: Tensor) -> Tensor:
        """What the adapter adds: [T, I] -> [T, O]; its weights are float32 whatever x is."""
        x_Tr = F.linear(x_TI, self.lora_A.weight.to(x_TI.dtype))
        return self.scale * F.linear(x_Tr, self.lora_B.weight.to(x_Tr.dtype))


class AdaptedSwiGLU(nn.Module):
    """The gated MLP over adapted layers; the base's product is the one it always was."""

    def __init__(self, mlp: SwiGLU, rank: int, scale: float, generator: torch.Generator) -> None:
        super().__init__()
        self.fc1_g = AdaptedLinear(mlp.fc1_g, rank, scale, generator)
        self.fc1_x = AdaptedLinear(mlp.fc1_x, rank, scale, generator)
        self.fc2 = AdaptedLinear(mlp.fc2, rank, scale, generator)

    def forward(self, x_TD: Tensor) -> Tensor:
        """[T, D] -> [T, D]."""
        weight = torch.cat((self.fc1_g.weight, self.fc1_x.weight))
        bias = torch.cat((self.fc1_g.bias, self.fc1_x.bias))
        change = torch.cat((self.fc1_g.change(x_TD), self.fc1_x.change(x_TD)), dim=-1)
        return self.fc2(swiglu(F.linear(x_TD, weight, bias) + change))


class AdaptedLabelEmbedder(nn.Module):
    """The frozen label table with trainable rows before its last, which stays the null label's."""

    def __init__(self, embedder: LabelEmbedder, num_new: int) -> None:
        super().__init__()
        self.embedding_table = embedder.embedding_table
        null_D = self.embedding_table.weight.detach()[-1].float()
        with torch.device("meta"):
            self.new_rows = nn.Embedding(num_new, len(null_D))
        self.new_rows.weight = nn.Parameter(null_D.repeat(num_new, 1))

    def forward(self, label_S: Tensor) -> Tensor:
        """[S] -> [S, D]."""
        old = self.embedding_table.weight
        table = torch.cat((old[:-1], self.new_rows.weight.to(old.dtype), old[-1:]))
        return F.embedding(label_S, table)


def add_adapters(
    network: FiTv2,
    rank: int,
    alpha: float,
    generator: torch.Generator,
    num_new_classes: int = 0,
) -> None:
    """Put adapters on the linear layers of every block and leave nothing else to train.

    Predictions are at first what they were; a new class begins as the null label, that is as any
    picture. With new classes the null label's number grows, and `network.config` says so.

    Args:
        network: changed in place; plain, neither adapted nor laid out for serving.
        rank: of the adapters.
        alpha: a change counts alpha / rank times.
        generator: draws the first of the two matrices, on the CPU.
        num_new_classes: rows to add to the label table.

    Raises:
        ValueError: the rank is below 1, or the number of classes below 0.
    """
    if rank < 1:
        raise ValueError(f"adapter rank is {rank}; it must be at least 1")
    if num_new_classes < 0:
        raise ValueError(f"num_new_classes is {num_new_classes}; it must be at least 0")
    network.requires_grad_(False)
    scale = alpha / rank
    for block in network.blocks:
        assert isinstance(block, Block)
        assert type(block.attn.qkv) is nn.Linear, "the network is adapted or laid out already"
        block.attn.qkv = AdaptedLinear(block.attn.qkv, rank, scale, generator)
        block.attn.proj = AdaptedLinear(block.attn.proj, rank, scale, generator)
        block.set_submodule("mlp", AdaptedSwiGLU(block.mlp, rank, scale, generator))
    if num_new_classes:
        embedder = AdaptedLabelEmbedder(network.y_embedder, num_new_classes)
        network.set_submodule("y_embedder", embedder)
        network.config = replace(
            network.config, num_classes=network.config.num_classes + num_new_classes
        )


def adapter_state(source: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The adapter's weights of an adapted network, or of its state dict (an average of it, say)."""
    state = source.state_dict() if isinstance(source, nn.Module) else source
    return {name: tensor for name, tensor in state.items() if is_adapter_weight(name)}
