"""`fit-serve train-autoencoder` makes its pairs, then trains as the options say."""

from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from fit_models.bundle import bundle_folder
from fit_serve.cli.command import app
from fit_training.autoencoder import distillation, generated_pairs, image_pairs
from fit_training.autoencoder.averaged_training import TrainingPlan
from fit_training.autoencoder.distillation import DistillationConfig
from fit_training.autoencoder.generated_pairs import GeneratedConfig

Asked = list[GeneratedConfig | DistillationConfig]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> Asked:
    """What generation and training were asked for, in order; nothing is computed."""
    seen: Asked = []

    def distil(config: DistillationConfig, report: object) -> Path:
        seen.append(config)
        return config.folder / "export"

    monkeypatch.setattr(image_pairs, "write_image_pairs", lambda config, report: None)
    monkeypatch.setattr(
        generated_pairs, "write_generated_pairs", lambda config, report: seen.append(config)
    )
    monkeypatch.setattr(distillation, "distill_autoencoder", distil)
    return seen


def run(*options: str) -> Result:
    files = ("photographs.zip", "out", "--teacher", "taesd", "--feature-network", "lite0")
    return CliRunner().invoke(app, ["train-autoencoder", *files, *options])


def test_without_options_it_starts_from_nothing_and_generates_nothing(asked: Asked) -> None:
    result = run()
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1] == f"wrote {Path('out/export')}"
    (config,) = asked
    assert isinstance(config, DistillationConfig)
    assert (config.start, config.generated) == (None, None)
    assert config.decoder_plan == TrainingPlan(steps=10_000)
    assert config.encoder_plan == TrainingPlan(steps=3_000)


def test_a_start_learns_slower_and_a_model_makes_latents(asked: Asked) -> None:
    options = ("--start", "embedded", "--model", "embedded", "--generated", "60")
    result = run(*options, "--decoder-steps", "40", "--encoder-steps", "0", "--seed", "3")
    assert result.exit_code == 0, result.output
    latents, config = asked
    folder = Path("out/generated")
    assert latents == GeneratedConfig("embedded", Path("taesd"), folder, count=60, seed=3)
    assert isinstance(config, DistillationConfig)
    assert config.start == bundle_folder("embedded") / "vae"
    assert config.generated == folder
    assert config.decoder_plan == TrainingPlan(steps=40, learning_rate=5e-4, warmup_steps=50)
    assert config.encoder_plan.steps == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--generated", "5"), "generated: 5 latents need a --model"),
        (("--learning-rate", "0"), "learning_rate: 0.0 is not above 0"),
        (("--dtype", "int8"), "dtype: 'int8' is not one of bfloat16, float32"),
        (("--start", "nowhere"), "autoencoder: no such folder: nowhere"),
    ],
)
def test_options_that_cannot_be_are_refused_in_one_line(
    asked: Asked, options: tuple[str, ...], message: str
) -> None:
    result = run(*options)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: {message}")
    assert not asked
