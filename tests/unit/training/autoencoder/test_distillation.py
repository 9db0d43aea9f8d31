"""Laws of the distillation: it learns, it resumes exactly, and it exports what diffusers loads."""

import dataclasses
import json
import logging
from pathlib import Path

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from safetensors.torch import load_file

from fit_models.autoencoder import WEIGHTS_NAME, Autoencoder
from fit_training.autoencoder.averaged_training import TrainingPlan
from fit_training.autoencoder.distillation import (
    DistillationConfig,
    DistillationProgress,
    distill_autoencoder,
)
from fit_training.autoencoder.generated_pairs import GeneratedConfig, write_generated_pairs
from fit_training.autoencoder.image_pairs import PairConfig, write_image_pairs
from fit_training.autoencoder.quality import measure_autoencoder
from fit_training.autoencoder.reconstruction import LossWeights
from fit_training.autoencoder.student import PartShape
from fit_training.preparation.sources.opening import open_photographs
from support.feature_weights import write_feature_weights
from support.photograph_archives import write_archive
from support.small_autoencoders import write_small_autoencoder
from support.toy_bundle import make_toy_bundle

PHOTOGRAPHS = [("owl", 48, 32), ("fox", 32, 40), ("elk", 32, 32)]
PLAN = TrainingPlan(steps=6, warmup_steps=2, average=0.5)


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Photographs, a teacher, and its pairs."""
    folder = tmp_path_factory.mktemp("source")
    archive = write_archive(folder / "photographs.zip", PHOTOGRAPHS)
    teacher = write_small_autoencoder(folder / "teacher", seed=3)
    write_image_pairs(PairConfig(archive, teacher, folder / "pairs", sides=(32, 40)))
    return folder


@pytest.fixture(scope="module")
def generated(tmp_path_factory) -> Path:
    """Latents of a transformer, and what the teacher decodes them to."""
    folder = tmp_path_factory.mktemp("latents")
    write_generated_pairs(
        GeneratedConfig(
            model=str(make_toy_bundle(folder / "bundle")),
            teacher=write_small_autoencoder(folder / "teacher", seed=3),
            folder=folder / "generated",
            count=3,
            sizes=((2, 3),),
        )
    )
    return folder / "generated"


@pytest.fixture
def config(source, tmp_path) -> DistillationConfig:
    return DistillationConfig(
        pairs=source / "pairs",
        folder=tmp_path / "student",
        feature_weights=None,
        decoder=PartShape(8, (1, 1, 1, 0)),
        encoder=PartShape(8, (0, 1, 1, 1)),
        decoder_plan=PLAN,
        encoder_plan=PLAN,
        batch_pixels=2048,
        loss=LossWeights(features=0, feature_texture=0, deep_features=0),
        report_every_steps=2,
        save_every_s=0,
    )


def test_the_export_is_what_diffusers_and_we_load_without_a_word(config, caplog, monkeypatch):
    folder = distill_autoencoder(config)
    monkeypatch.setattr(logging.getLogger("diffusers"), "propagate", True)
    network = AutoencoderTiny.from_pretrained(folder, low_cpu_mem_usage=False)
    assert isinstance(network, AutoencoderTiny)
    assert network.config["scaling_factor"] == 1.0
    assert network.config["shift_factor"] == 0.0
    assert Autoencoder.from_folder(folder).latent_channels == 4
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", WEIGHTS_NAME]
    assert "block_out_channels" not in json.loads((folder / "config.json").read_text())
    assert not caplog.records


def test_an_interrupted_run_ends_with_the_same_weights(config, tmp_path):
    whole = distill_autoencoder(config)
    twin = dataclasses.replace(config, folder=tmp_path / "twin")

    def stop_at(part: str, step: int):
        def stop(progress: DistillationProgress) -> None:
            if (progress.part, progress.step) == (part, step):
                raise InterruptedError

        return stop

    for part, step in (("decoder", 4), ("encoder", 2)):
        with pytest.raises(InterruptedError):
            distill_autoencoder(twin, stop_at(part, step))
    assert (whole / WEIGHTS_NAME).read_bytes() == (
        distill_autoencoder(twin) / WEIGHTS_NAME
    ).read_bytes()


def test_a_finished_run_takes_no_further_step(config):
    distill_autoencoder(config)
    reports: list[DistillationProgress] = []
    distill_autoencoder(config, reports.append)
    assert not reports


def test_progress_names_part_step_and_every_term(config):
    reports: list[DistillationProgress] = []
    distill_autoencoder(dataclasses.replace(config, report_every_steps=4), reports.append)
    seen = [(report.part, report.step) for report in reports]
    assert seen == [("decoder", 4), ("decoder", 6), ("encoder", 4), ("encoder", 6)]
    assert all(report.steps == 6 and report.saved for report in reports)
    assert all(report.pixels_per_s > 0 for report in reports)
    assert {"pixels", "edges", "texture", "total"} <= set(reports[0].terms)
    assert set(reports[-1].terms) == {"square", "absolute", "total"}


def test_both_parts_come_nearer_to_the_teacher(config, source):
    plan = TrainingPlan(steps=200, learning_rate=5e-3, warmup_steps=10, average=0.9)
    longer = dataclasses.replace(
        config, decoder_plan=plan, encoder_plan=plan, report_every_steps=10, save_every_s=60
    )
    reports: list[DistillationProgress] = []
    student = Autoencoder.from_folder(distill_autoencoder(longer, reports.append))
    for part in ("decoder", "encoder"):
        totals = [report.terms["total"] for report in reports if report.part == part]
        assert totals[-1] < 0.6 * totals[0]
    teacher = Autoencoder.from_folder(source / "teacher")
    with open_photographs(source / "photographs.zip") as archive:
        quality = measure_autoencoder(student, teacher, archive)
    assert quality.latent_rmse < 0.5 * quality.latent_rms
    assert quality.decoder_teacher_psnr > 30


def test_features_are_compared_when_they_count(config, tmp_path):
    path = write_feature_weights(tmp_path / "features.safetensors")
    weighed = dataclasses.replace(config, feature_weights=path, loss=LossWeights())
    reports: list[DistillationProgress] = []
    distill_autoencoder(weighed, reports.append)
    assert reports[0].terms["features"] > 0
    assert reports[0].terms["feature_texture"] > 0


def test_a_loss_that_is_no_number_stops_training(config):
    plan = dataclasses.replace(PLAN, learning_rate=float("inf"))
    with pytest.raises(ValueError, match=r"decoder: the loss at step \d is nan"):
        distill_autoencoder(dataclasses.replace(config, decoder_plan=plan))


def test_a_start_is_exported_as_it_was_while_nothing_is_learned(config, tmp_path):
    start = write_small_autoencoder(tmp_path / "start", seed=9)
    still = dataclasses.replace(PLAN, steps=0)
    asked = dataclasses.replace(config, start=start, decoder_plan=still, encoder_plan=still)
    exported, latents_1C44 = distill_autoencoder(asked), torch.randn(1, 4, 4, 4)
    before, after = Autoencoder.from_folder(start), Autoencoder.from_folder(exported)
    change = before.decode(latents_1C44).int() - after.decode(latents_1C44).int()
    assert change.abs().max() <= 1  # the export is float16


def test_a_run_on_generated_pairs_too_goes_on_as_if_never_stopped(config, generated, tmp_path):
    start = write_small_autoencoder(tmp_path / "start", seed=9)
    asked = dataclasses.replace(config, generated=generated, start=start)
    reports: list[DistillationProgress] = []
    whole = distill_autoencoder(asked, reports.append)
    assert "photograph" in reports[0].terms
    twin = dataclasses.replace(asked, folder=tmp_path / "twin")

    def stop(progress: DistillationProgress) -> None:
        raise InterruptedError

    for _ in range(4):
        with pytest.raises(InterruptedError):
            distill_autoencoder(twin, stop)
    assert (whole / WEIGHTS_NAME).read_bytes() == (
        distill_autoencoder(twin) / WEIGHTS_NAME
    ).read_bytes()
    without = dataclasses.replace(asked, generated=None, folder=tmp_path / "without")
    assert (whole / WEIGHTS_NAME).read_bytes() != (
        distill_autoencoder(without) / WEIGHTS_NAME
    ).read_bytes()


def test_latents_without_a_photograph_need_none(config, generated):
    asked = dataclasses.replace(config, generated=generated, generated_share=1.0)
    reports: list[DistillationProgress] = []
    distill_autoencoder(asked, reports.append)
    assert "photograph" not in reports[0].terms
    assert reports[0].terms["total"] > 0


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"loss": LossWeights()}, "feature_weights: needed"),
        ({"batch_pixels": 0}, "batch_pixels: 0 is less than 1"),
        ({"report_every_steps": 0}, "report_every_steps: 0"),
        ({"noisy_share": 1.5}, r"noisy_share: 1\.5"),
        ({"generated_share": -0.5}, r"generated_share: -0\.5"),
        ({"dtype": "int8"}, "dtype: 'int8' is not one of bfloat16, float32"),
        ({"noise": -0.1}, r"noise: -0\.1"),
    ],
)
def test_a_config_that_cannot_be_is_refused(config, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(config, **change)


def test_pairs_that_are_not_complete_are_refused(config, tmp_path):
    with pytest.raises(ValueError, match="is not complete"):
        distill_autoencoder(dataclasses.replace(config, pairs=tmp_path))


def test_checkpoints_of_another_shape_are_refused(config):
    distill_autoencoder(config)
    wider = dataclasses.replace(config, decoder=PartShape(16, (1, 1, 1, 0)))
    with pytest.raises(ValueError, match="of another network"):
        distill_autoencoder(wider)


def test_noise_on_latents_changes_what_is_learned_and_is_repeatable(config, tmp_path):
    def weights(name: str, noise: float) -> torch.Tensor:
        changed = dataclasses.replace(config, folder=tmp_path / name, noisy_share=1.0, noise=noise)
        return load_file(distill_autoencoder(changed) / WEIGHTS_NAME)["decoder.layers.0.weight"]

    assert torch.equal(weights("a", 0.5), weights("b", 0.5))
    assert not torch.equal(weights("c", 0.0), weights("d", 0.5))
