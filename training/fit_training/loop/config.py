"""What a run is: dataclasses of settings, in every checkpoint.

Knows names, defaults and limits; reads no file (`config_file.py`), opens no data and makes no
network.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from fit_kernels.backend import BACKENDS
from fit_training.loop.trained_networks import TRAINED_SIZES


@dataclass(frozen=True)
class RunConfig:
    """What every run has: of `fit-serve train`, and of `fit-serve post-train`.

    Attributes:
        data: folder that `fit-serve prepare` wrote for training.
        output: folder for checkpoints, log and the config itself.
        validation_data: the same for validation; empty for none.
        num_steps: optimizer steps of the whole run.
        tokens_per_batch: packed tokens of one micro-batch; it may hold fewer, never more unless one
            image alone does.
        micro_batches: of one optimizer step, over all processes; a multiple of their number. An
            epoch's last step may have fewer. What is learned does not depend on who computes them.
        activation_checkpointing: keep only the inputs of blocks and compute the rest anew in the
            backward pass: less memory, a third more work.
        learning_rate: after warm-up (matched RMS for Muon, arXiv:2502.16982).
        warmup_steps: linear rise of the learning rate.
        decay_steps: linear fall to zero at the end of the run.
        optimizer: "muon" (matrices of the blocks, AdamW for the rest) or "adamw".
        weight_decay: decoupled, on matrices only.
        gradient_clip: L2 norm over all parameters.
        classes: names to train on, a subset of what was prepared, in this order; none means all.
        class_dropout: share of labels replaced by the null label.
        class_balance: draws per class go with (its photographs) ** class_balance; 1 is as they are.
        alignment_weight: of the representation alignment loss (REPA, arXiv:2410.06940); 0 is off.
        alignment_block: block after which tokens are aligned, counted from 1.
        ema_decay: of the averaged weights that are served.
        precision: "bfloat16" autocast or "float32".
        operators: "reference", "compiled" (by torch.compile; a minute at the start), "fused" (our
            kernels, on a GPU) or "auto": fused where it can run, else reference.
        num_threads: torch threads; 0 leaves torch's own choice.
        device: "auto", "cpu" or "cuda".
        log_every: steps between log lines.
        checkpoint_every: steps between checkpoints.
        keep_checkpoints: how many of the newest stay.
        seed: of initial weights, order, times, noise and dropout.
        tensorboard: whether `output/tensorboard` is written beside `output/log.jsonl`.
        sample_every: steps between sheets of pictures in `output/samples`; 0 draws none.
        sample_autoencoder: decodes them: the one `prepare` took, a folder or "embedded".
    """

    data: str
    output: str
    validation_data: str = ""
    num_steps: int = 20_000
    tokens_per_batch: int = 3072
    micro_batches: int = 1
    activation_checkpointing: bool = False
    learning_rate: float = 1e-3
    warmup_steps: int = 200
    decay_steps: int = 4_000
    optimizer: str = "muon"
    weight_decay: float = 0.01
    gradient_clip: float = 1.0
    classes: tuple[str, ...] = ()
    class_dropout: float = 0.1
    class_balance: float = 0.5
    alignment_weight: float = 0.5
    alignment_block: int = 3
    ema_decay: float = 0.9995
    precision: str = "bfloat16"
    operators: str = "auto"
    num_threads: int = 0
    device: str = "auto"
    log_every: int = 20
    checkpoint_every: int = 250
    keep_checkpoints: int = 2
    seed: int = 0
    tensorboard: bool = True
    sample_every: int = 0
    sample_autoencoder: str = ""

    def __post_init__(self) -> None:
        one_of("optimizer", self.optimizer, ("muon", "adamw"))
        one_of("precision", self.precision, ("bfloat16", "float32"))
        one_of("operators", self.operators, ("auto", *BACKENDS))
        one_of("device", self.device, ("auto", "cpu", "cuda"))
        for name in (
            "num_steps",
            "tokens_per_batch",
            "micro_batches",
            "log_every",
            "checkpoint_every",
            "keep_checkpoints",
        ):
            at_least(name, getattr(self, name), 1)
        for name in (
            "warmup_steps",
            "decay_steps",
            "num_threads",
            "alignment_weight",
            "weight_decay",
            "sample_every",
        ):
            at_least(name, getattr(self, name), 0)
        for name in ("learning_rate", "gradient_clip"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0 and finite")
        if len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes {list(self.classes)} name a class twice")
        for name in ("class_dropout", "class_balance", "ema_decay"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be in 0..1")
        if self.sample_every and not self.sample_autoencoder:
            raise ValueError("sample_autoencoder is empty; it must be given with sample_every")
        at_least("alignment_block", self.alignment_block, 1)

    def to_dict(self) -> dict[str, Any]:
        """The fields as plain values."""
        return asdict(self)


@dataclass(frozen=True)
class TrainConfig(RunConfig):
    """A run of `fit-serve train`: from random weights.

    Attributes:
        model: a named size, see `fit_training.loop.trained_networks.TRAINED_SIZES`.
    """

    model: str = "FiTv2-Ti/2"

    def __post_init__(self) -> None:
        super().__post_init__()
        one_of("model", self.model, tuple(TRAINED_SIZES))
        depth = TRAINED_SIZES[self.model].depth
        if self.alignment_block > depth:
            raise ValueError(f"alignment_block is {self.alignment_block}; {self.model} has {depth}")


def one_of(name: str, value: str, known: tuple[str, ...]) -> None:
    """Refuse a setting whose value is none of the known ones, with `ValueError`."""
    if value not in known:
        raise ValueError(f"{name} is {value!r}; known: {', '.join(known)}")


def at_least(name: str, value: float, limit: float) -> None:
    """Refuse a setting that is not a number of at least the limit, with `ValueError`."""
    if not value >= limit:
        raise ValueError(f"{name} is {value}; it must be at least {limit}")
