"""A run is what its file says: an unknown key, a wrong type or a value out of range is an error."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fit_training.loop.config import TrainConfig
from fit_training.loop.config_file import load_config

NEEDED = {"data": "latents", "output": "run"}


def load(tmp_path: Path, values: Any = NEEDED, overrides: tuple[str, ...] = ()) -> TrainConfig:
    path = tmp_path / "run.yaml"
    path.write_text(values if isinstance(values, str) else yaml.safe_dump(values))
    return load_config(path, TrainConfig, overrides)


def test_what_the_file_does_not_say_is_the_default(tmp_path: Path):
    assert load(tmp_path) == TrainConfig(data="latents", output="run")


def test_a_config_survives_its_file(tmp_path: Path):
    config = TrainConfig("a", "b", num_steps=7, classes=("x", "y z"), learning_rate=3e-4)
    values = {**config.to_dict(), "classes": list(config.classes)}
    assert load(tmp_path, values) == config


def test_an_override_wins_over_the_file(tmp_path: Path):
    overrides = ("num_steps=9", "learning_rate=1e-3", "classes=[ant, bee]", "model=FiTv2-S/2")
    config = load(tmp_path, {**NEEDED, "num_steps": 3}, overrides)
    assert (config.num_steps, config.learning_rate) == (9, 1e-3)  # YAML alone reads 1e-3 as text
    assert (config.classes, config.model) == (("ant", "bee"), "FiTv2-S/2")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_step": 3}, r"unknown training settings \['num_step'\]; known: "),
        ({"num_steps": "many"}, "num_steps is 'many'; it must be of type int"),
        ({"num_steps": 2.5}, r"num_steps is 2\.5; it must be of type int"),
        ({"num_steps": True}, "num_steps is True; it must be of type int"),
        ({"num_steps": None}, "num_steps is None; it must be of type int"),
        ({"num_steps": 0}, "num_steps is 0; it must be at least 1"),
        ({"tokens_per_batch": 0}, "tokens_per_batch is 0; it must be at least 1"),
        ({"micro_batches": 0}, "micro_batches is 0; it must be at least 1"),
        ({"activation_checkpointing": 1}, "activation_checkpointing is 1; it must be of type bool"),
        ({"keep_checkpoints": 0}, "keep_checkpoints is 0; it must be at least 1"),
        ({"log_every": 0}, "log_every is 0"),
        ({"sample_every": -1}, "sample_every is -1; it must be at least 0"),
        ({"sample_every": 5}, "sample_autoencoder is empty; it must be given with sample_every"),
        ({"tensorboard": "yes please"}, "tensorboard is 'yes please'; it must be of type bool"),
        ({"tensorboard": 1}, "tensorboard is 1; it must be of type bool"),
        ({"checkpoint_every": -1}, "checkpoint_every is -1"),
        ({"warmup_steps": -1}, "warmup_steps is -1; it must be at least 0"),
        ({"learning_rate": "fast"}, "learning_rate is 'fast'; it must be a number"),
        ({"learning_rate": 0}, "learning_rate is 0; it must be above 0 and finite"),
        ({"learning_rate": float("inf")}, "learning_rate is inf"),
        ({"gradient_clip": 0.0}, r"gradient_clip is 0\.0; it must be above 0"),
        ({"weight_decay": -0.1}, r"weight_decay is -0\.1; it must be at least 0"),
        ({"alignment_weight": float("nan")}, "alignment_weight is nan"),
        ({"class_dropout": 1.5}, r"class_dropout is 1\.5; it must be in 0\.\.1"),
        ({"ema_decay": -0.5}, "ema_decay is -0.5"),
        ({"class_balance": float("nan")}, "class_balance is nan"),
        ({"classes": "ant"}, r"classes is 'ant'; it must be of type tuple\[str, \.\.\.\]"),
        ({"classes": ["ant", 3]}, r"classes is \['ant', 3\]"),
        ({"classes": ["ant", "bee", "ant"]}, r"classes \['ant', 'bee', 'ant'\] name a class twice"),
        ({"model": "DiT-XL"}, "model is 'DiT-XL'; known: FiTv2-B/2"),
        ({"optimizer": "sgd"}, "optimizer is 'sgd'; known: muon, adamw"),
        ({"precision": "float16"}, "precision is 'float16'; known: bfloat16, float32"),
        ({"operators": "triton"}, "operators is 'triton'; known: auto, reference, compiled, fused"),
        ({"device": "tpu"}, "device is 'tpu'; known: auto, cpu, cuda"),
        ({"alignment_block": 7}, "alignment_block is 7; FiTv2-Ti/2 has 6"),
        ({"alignment_block": 0}, "alignment_block is 0"),
        ({"data": 3}, "data is 3; it must be of type str"),
    ],
)
def test_a_setting_that_means_nothing_is_refused(
    tmp_path: Path, change: dict[str, Any], message: str
):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, {**NEEDED, **change})
    if all(value is not None for value in change.values()):
        overrides = tuple(f"{key}={yaml.safe_dump(value)}" for key, value in change.items())
        with pytest.raises(ValueError, match=message):
            load(tmp_path, NEEDED, overrides)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"\['data', 'output'\] are missing"),
        ("data: x", r"\['output'\] are missing"),
        ("- data", "expected a mapping of settings, got list"),
        ("data: [", "run.yaml is not YAML"),
    ],
)
def test_a_file_that_is_no_run_is_refused(tmp_path: Path, text: str, message: str):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, text)


@pytest.mark.parametrize(
    ("override", "message"),
    [("num_steps", "is not of the form key=value"), ("num_steps=[", "is not YAML")],
)
def test_an_override_that_is_none_is_refused(tmp_path: Path, override: str, message: str):
    with pytest.raises(ValueError, match=message):
        load(tmp_path, NEEDED, (override,))
