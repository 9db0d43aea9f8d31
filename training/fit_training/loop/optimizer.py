"""Which parameters which optimizer moves.

Muon (Jordan 2024; scaled to AdamW's step as in arXiv:2502.16982) for the weight matrices inside the
blocks; AdamW for embeddings, biases, adaLN, the ends and the alignment head.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

_TABLES = ("embedding_table.weight", "new_rows.weight")
_MUON_LAYERS = ("attn.qkv", "attn.proj", "mlp.fc1_g", "mlp.fc1_x", "mlp.fc1", "mlp.fc2")


def make_optimizers(
    modules: Iterable[nn.Module], name: str, learning_rate: float, weight_decay: float
) -> list[torch.optim.Optimizer]:
    """Return the optimizers that together own every parameter with a gradient exactly once.

    Args:
        modules: the network and whatever else is trained with it.
        name: "muon" or "adamw".
        learning_rate: of both.
        weight_decay: decoupled; biases and embeddings have none.
    """
    muon, decayed, plain = [], [], []
    for module in modules:
        for key, parameter in module.named_parameters():
            if not parameter.requires_grad:
                continue
            if name == "muon" and key.endswith(tuple(f"{x}.weight" for x in _MUON_LAYERS)):
                muon.append(parameter)
            elif parameter.ndim == 2 and not key.endswith(_TABLES):
                decayed.append(parameter)
            else:
                plain.append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": plain, "weight_decay": 0.0},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.99), fused=True)
    ]
    if muon:
        optimizers.append(
            torch.optim.Muon(
                muon, lr=learning_rate, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            )
        )
    return optimizers
