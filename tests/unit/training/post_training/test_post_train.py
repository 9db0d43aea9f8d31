"""From a bundle to what is served of it: adapter, larger pictures, fewer steps."""

import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fit_models.adapted_network import adapter_state
from fit_models.bundle import Bundle, load_bundle
from fit_models.families import position_tables
from fit_models.positions import layout_of_tables
from fit_training.export import read_run
from fit_training.loop.data import LatentDataset
from fit_training.loop.trained_networks import TrainedNetwork
from fit_training.post_training import run as run_module
from fit_training.post_training.base_model import read_base
from fit_training.post_training.config import METHODS, PostTrainConfig
from fit_training.post_training.few_step_trainer import FewStepTrainer
from fit_training.post_training.post_trainer import AdapterTrainer, HighResolutionTrainer
from fit_training.post_training.run import post_train
from fit_training.post_training.trainable import is_trained
from support.small_autoencoders import write_small_autoencoder
from support.toy_bundle import CLASS_NAMES, make_toy_bundle
from support.toy_latents import write_toy_latents
from support.toy_post_run import NEW_CLASS, toy_post_run, write_data
from support.toy_run import differences, logged, saved

GRIDS = [(2, 3), (1, 2), (3, 4)]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_toy_bundle(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def new_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("new-data"), new_class=True)


@pytest.fixture
def data_of(data: Path, new_data: Path) -> dict[str, Path]:
    return {method: new_data if method == "lora" else data for method in METHODS}


def predictions(network: TrainedNetwork, labels: list[int]) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    lengths = [rows * columns for rows, columns in GRIDS]
    config = network.config
    layout = layout_of_tables(GRIDS, lambda r, c: position_tables(r, c, config))
    tokens = torch.randn(sum(lengths), network.config.token_channels, generator=generator)
    with torch.no_grad():
        return network(tokens, layout, torch.tensor([0.1, 0.5, 0.9]), torch.tensor(labels))


def trained(config: PostTrainConfig) -> dict[str, Tensor]:
    averaged: dict[str, Tensor] = saved(config)["averaged"]
    return averaged


@pytest.mark.parametrize("method", METHODS)
def test_a_run_that_was_stopped_is_the_unbroken_run(
    base: Path, data_of: dict[str, Path], tmp_path: Path, method: str
):
    config = toy_post_run(base, data_of[method], tmp_path, method)
    post_train(config)
    unbroken = saved(config)
    shutil.rmtree(tmp_path / "checkpoint-00000006")
    post_train(config)
    assert not differences(unbroken, saved(config))
    steps = [row["step"] for row in logged(config)]
    assert steps == [1, 2, 3, 4, 5, 6, 4, 5, 6]


@pytest.mark.parametrize("method", METHODS)
def test_the_loss_falls(base: Path, data_of: dict[str, Path], tmp_path: Path, method: str):
    config = toy_post_run(
        base, data_of[method], tmp_path, method, num_steps=60, tokens_per_batch=400
    )
    post_train(config)
    losses = [row["loss"] for row in logged(config)]
    assert sum(losses[-8:]) < 0.97 * sum(losses[:8])


def test_an_adapter_serves_what_was_trained_and_brings_the_new_class(
    base: Path, new_data: Path, tmp_path: Path
):
    config = toy_post_run(base, new_data, tmp_path, "lora")
    folder = post_train(config)
    assert folder == tmp_path / "adapter"
    served = load_bundle(str(base), adapters=[folder])
    assert served.class_names == (*CLASS_NAMES, NEW_CLASS)
    trainer = AdapterTrainer(config, base=read_base(str(base)))
    trainer.network.load_state_dict(trained(config))
    for labels in ([0, 1, 2], [3, 4, 3]):  # the new class, the null label
        torch.testing.assert_close(
            predictions(served.fitv2("these tests"), labels),
            predictions(trainer.network, labels),
            atol=1e-4,
            rtol=1e-4,
        )
    plain = load_bundle(str(base))
    assert not torch.allclose(
        predictions(served.fitv2("these tests"), [0, 1, 2]),
        predictions(plain.fitv2("these tests"), [0, 1, 2]),
        atol=1e-3,
    )


def test_an_adapters_run_leaves_the_base_as_it_was(base: Path, new_data: Path, tmp_path: Path):
    config = toy_post_run(base, new_data, tmp_path, "lora", weight_decay=0.5)
    post_train(config)
    own = read_base(str(base)).weights
    weights = trained(config)
    changed = set(adapter_state(weights))
    assert weights.keys() == own.keys() | changed
    assert changed
    assert not differences(own, {name: weights[name] for name in own})


def test_high_resolution_changes_its_share_of_the_weights_and_how_positions_stretch(
    base: Path, data: Path, tmp_path: Path
):
    config = toy_post_run(base, data, tmp_path, "high-resolution", trained_length=2, name="large")
    served = load_bundle(str(post_train(config)))
    plain = load_bundle(str(base))
    assert (served.name, served.class_names) == ("large", CLASS_NAMES)
    assert served.defaults == plain.defaults
    assert served.fitv2("these tests").config.rope.mode == "ntk-aware"
    assert served.fitv2("these tests").config.rope.ori_max_pe_len == 2
    before = read_base(str(base)).weights
    for name, weight in trained(config).items():
        assert torch.equal(weight, before[name]) != is_trained(name), name
    same_pictures(served, plain)


def same_pictures(one: Bundle, other: Bundle) -> None:
    """Both decode the same latents to the same pixels."""
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(one.autoencoder.decode(latents), other.autoencoder.decode(latents))


def test_all_weights_are_trained_if_asked(base: Path, data: Path, tmp_path: Path):
    config = toy_post_run(base, data, tmp_path, "full", num_steps=2)
    large = replace(config, method="high-resolution", freeze=False, output=str(tmp_path / "large"))
    before = read_base(str(base)).weights
    for run in (config, large):
        bundle = load_bundle(str(post_train(run)))
        assert bundle.class_names == CLASS_NAMES
        assert not any(torch.equal(w, before[name]) for name, w in trained(run).items())
    assert load_bundle(str(tmp_path / "bundle")).model_config == read_base(str(base)).config


def test_high_resolution_restarts_what_it_trains_if_asked(base: Path, data: Path, tmp_path: Path):
    config = toy_post_run(base, data, tmp_path, "high-resolution", restart=True)
    trainer = HighResolutionTrainer(config, base=read_base(str(base)))
    assert not trainer.network.final_layer.linear.weight.any()
    assert trainer.network.blocks[0].attn.qkv.weight.any()  # pyright: ignore


def test_a_student_is_served_in_its_steps_and_without_guidance(
    base: Path, data: Path, tmp_path: Path
):
    config = toy_post_run(base, data, tmp_path, "few-step")
    served = load_bundle(str(post_train(config)))
    plain = load_bundle(str(base))
    assert served.name == "toy-few-step"
    assert (served.defaults.num_inference_steps, served.defaults.guidance_scale) == (2, 1.0)
    assert served.model_config == plain.model_config
    same_pictures(served, plain)


def test_a_student_of_as_many_steps_that_is_not_guided_has_nothing_to_learn(
    base: Path, data: Path, tmp_path: Path
):
    """One step of the teacher on an edge is the edge: the student answers right from the start."""
    config = toy_post_run(
        base, data, tmp_path, "few-step", teacher_steps=1, guidance_scale=1.0, learning_rate=1e-9
    )
    post_train(config)
    assert all(row["loss"] < 1e-9 for row in logged(config))


def test_a_teacher_that_guides_is_no_student(base: Path, data: Path, tmp_path: Path):
    config = toy_post_run(base, data, tmp_path, "few-step", teacher_steps=1, guidance_scale=3.0)
    trainer = FewStepTrainer(config, base=read_base(str(base)))
    batch = trainer.data.batch(trainer.data.epoch(40, 1.0, 0, 0)[0])
    losses = trainer.losses(batch, torch.Generator().manual_seed(0), 0.0)
    assert float(losses.flow.detach()) > 1e-3


def test_latents_are_the_bases_whoever_prepared_them(base: Path, tmp_path: Path):
    """Prepared by an autoencoder of another shift and scale, raw latents are the same."""
    raw = LatentDataset(
        write_data(tmp_path / "raw", autoencoder={"shift_factor": 0.0, "scaling_factor": 1.0})
    )
    other = LatentDataset(write_data(tmp_path / "other"))
    images = raw.epoch(40, 1.0, 0, 0)[0]
    raw.use_latents_of(0.0, 1.0)
    other.use_latents_of(0.0, 1.0)
    # Both folders hold the same numbers: as (raw - 0.5) * 2 they mean others.
    expected = raw.batch(images).tokens / 2.0 + 0.5
    torch.testing.assert_close(other.batch(images).tokens, expected)
    model = read_base(str(base))
    raw.use_latents_of(model.shift_factor, model.scaling_factor)
    raw_tokens = raw.batch(images).tokens / model.scaling_factor + model.shift_factor
    raw.use_latents_of(0.0, 1.0)
    torch.testing.assert_close(raw_tokens, raw.batch(images).tokens)


def test_classes_have_the_bases_labels_in_whatever_order(base: Path):
    model = read_base(str(base))
    assert model.labels_of(("heron", "a", "teapot", "b")) == (2, 3, 0, 4)


@pytest.mark.parametrize("method", ["high-resolution", "few-step"])
def test_only_an_adapter_takes_classes_the_base_does_not_know(
    base: Path, new_data: Path, tmp_path: Path, method: str
):
    config = toy_post_run(base, new_data, tmp_path, method)
    with pytest.raises(ValueError, match=r"classes \['newt'\] are not in toy; .* method=lora"):
        post_train(config)
    post_train(replace(config, classes=("kite", "heron"), num_steps=1))


def test_data_that_does_not_say_how_latents_were_made_is_refused(base: Path, tmp_path: Path):
    data = write_toy_latents(tmp_path / "old", [(0, 1, 2)] * 4, class_names=CLASS_NAMES)
    with pytest.raises(ValueError, match="lacks `autoencoder` in its index; prepare it again"):
        post_train(toy_post_run(base, data, tmp_path / "run", "few-step"))


def test_checkpoints_of_another_base_or_other_classes_are_refused(
    base: Path, data: Path, new_data: Path, tmp_path: Path
):
    config = toy_post_run(base, data, tmp_path / "run", "lora", num_steps=1)
    post_train(config)
    other = make_toy_bundle(tmp_path / "other", seed=1)
    with pytest.raises(ValueError, match=r"output: .* on another base than"):
        post_train(replace(config, base=str(other), num_steps=2))
    with pytest.raises(ValueError, match=r"output: .* new classes \[\], not \['newt'\]"):
        post_train(replace(config, data=str(new_data), num_steps=2))


def test_a_run_that_was_stopped_early_writes_no_result(
    base: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    config = toy_post_run(base, data, tmp_path, "few-step")
    whole_train = run_module.train

    def stopped(config: PostTrainConfig, *rest: Any) -> Path:
        return whole_train(replace(config, num_steps=2), *rest)

    monkeypatch.setattr(run_module, "train", stopped)
    assert post_train(config).name == "checkpoint-00000002"
    assert not (tmp_path / "bundle").exists()
    monkeypatch.undo()
    assert post_train(config) == tmp_path / "bundle"
    assert post_train(config) == tmp_path / "bundle"  # nothing to train, and written again


@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_drawn_of_every_method(
    base: Path, data_of: dict[str, Path], tmp_path: Path, method: str
):
    autoencoder = write_small_autoencoder(tmp_path / "autoencoder")
    config = toy_post_run(
        base,
        data_of[method],
        tmp_path / "run",
        method,
        trained_length=2,
        num_steps=2,
        sample_every=2,
        sample_autoencoder=str(autoencoder),
    )
    post_train(config)
    assert (tmp_path / "run" / "samples" / "step-000002.png").stat().st_size > 0


def test_export_says_that_there_is_nothing_to_export(base: Path, data: Path, tmp_path: Path):
    post_train(toy_post_run(base, data, tmp_path, "few-step", num_steps=1))
    with pytest.raises(ValueError, match="is of fit-serve post-train"):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("setting", "value", "said"),
    [
        ("method", "sft", "method is 'sft'; known: full, high-resolution, lora, few-step"),
        ("lora_rank", 0, "lora_rank is 0; it must be at least 1"),
        ("student_steps", 0, "student_steps is 0; it must be at least 1"),
        ("teacher_steps", 0, "teacher_steps is 0; it must be at least 1"),
        ("guidance_scale", -1.0, "guidance_scale is -1.0; it must be at least 0"),
        ("guidance_scale", float("inf"), "guidance_scale is inf; it must be finite"),
        ("lora_alpha", float("nan"), "lora_alpha is nan; it must be finite"),
        ("on_policy_share", 1.5, "on_policy_share is 1.5; it must be in 0..1"),
        ("trained_length", -1, "trained_length is -1; it must be at least 0"),
        ("learning_rate", 0.0, "learning_rate is 0.0; it must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(setting: str, value: Any, said: str):
    values: dict[str, Any] = {"base": "b", "method": "lora", "data": "d", "output": "o"}
    with pytest.raises(ValueError, match=re.escape(said)):
        PostTrainConfig(**{**values, setting: value})
