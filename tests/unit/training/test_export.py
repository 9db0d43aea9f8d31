import json
from pathlib import Path
from typing import Any

import pytest
import torch

from fit_models.autoencoder_copy import copy_autoencoder
from fit_models.bundle import SamplingDefaults, load_bundle
from fit_models.config import named_config
from fit_models.networks.fitv2 import FiTv2
from fit_training.export import export_bundle, read_run, remove_bundle
from fit_training.loop.checkpoints import read_checkpoint, save_checkpoint
from support.small_autoencoders import write_small_autoencoder

NAMES = ("ant", "bee", "car side")
SHIFT, SCALE = 0.125, 1.25


def checkpoint(folder: Path, step: int = 7, **changed: Any) -> Path:
    """Write what the trainer writes, as far as an export reads it."""
    torch.manual_seed(0)
    weights = FiTv2(named_config("FiTv2-toy/2", len(NAMES))).state_dict()
    state = {
        "config": {"model": "FiTv2-toy/2", "classes": NAMES},
        "averaged": {key: torch.randn(value.shape) for key, value in weights.items()},
        "latents": [SHIFT, SCALE],
        "progress": [step, 1, 2, 99],
        **changed,
    }
    return save_checkpoint(folder, step, state, keep=9)


@pytest.fixture(scope="module")
def autoencoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_small_autoencoder(tmp_path_factory.mktemp("autoencoder"))


def test_what_was_averaged_is_what_is_loaded(tmp_path: Path, autoencoder: Path):
    source = checkpoint(tmp_path)
    defaults = SamplingDefaults(12, 3.5, (0.25, 0.75), "heun")
    run = export_bundle(source, autoencoder, tmp_path / "bundle", "small", defaults=defaults)
    bundle = load_bundle(str(tmp_path / "bundle"))
    assert (bundle.name, bundle.class_names) == ("small", NAMES)
    assert bundle.defaults == defaults
    assert bundle.model_config == named_config("FiTv2-toy/2", len(NAMES))
    assert run.images_seen == 99
    averaged = read_checkpoint(source)["averaged"]
    for key, value in bundle.network.state_dict().items():
        assert torch.equal(value, averaged[key].bfloat16().float()), key


def test_decoding_undoes_the_normalisation_of_training(tmp_path: Path, autoencoder: Path):
    copy_autoencoder(autoencoder, tmp_path / "vae", SHIFT, SCALE)
    from fit_models.autoencoder import Autoencoder

    raw, served = Autoencoder.from_folder(autoencoder), Autoencoder.from_folder(tmp_path / "vae")
    latents = torch.randn(1, 4, 4, 6, generator=torch.Generator().manual_seed(1))
    assert torch.equal(raw.decode(latents), served.decode((latents - SHIFT) * SCALE))
    images = torch.randint(0, 256, (1, 3, 16, 24), dtype=torch.uint8)
    torch.testing.assert_close((raw.encode(images) - SHIFT) * SCALE, served.encode(images))


def test_a_folder_stands_for_its_newest_checkpoint(tmp_path: Path):
    checkpoint(tmp_path, 100, progress=[100, 0, 0, 1000])
    checkpoint(tmp_path, 20, progress=[20, 0, 0, 200])
    assert read_run(tmp_path).images_seen == 1000


def test_names_come_from_the_run_or_from_the_caller(tmp_path: Path, autoencoder: Path):
    config = {"model": "FiTv2-toy/2", "classes": ()}
    source = checkpoint(tmp_path, config=config)
    with pytest.raises(ValueError, match="class_names: 0 names for 3 labels"):
        export_bundle(source, autoencoder, tmp_path / "bundle", "small")
    export_bundle(source, autoencoder, tmp_path / "bundle", "small", ["x", "y", "z"])
    assert load_bundle(str(tmp_path / "bundle")).class_names == ("x", "y", "z")


def test_guided_channels_can_be_chosen(tmp_path: Path, autoencoder: Path):
    source = checkpoint(tmp_path)
    export_bundle(source, autoencoder, tmp_path / "bundle", "small", guided_channels=4)
    assert load_bundle(str(tmp_path / "bundle")).model_config.guided_channels == 4


def test_a_bundle_is_not_overwritten_but_can_be_removed(tmp_path: Path, autoencoder: Path):
    source, folder = checkpoint(tmp_path), tmp_path / "bundle"
    folder.mkdir()
    (folder / "README.md").write_text("card")
    export_bundle(source, autoencoder, folder, "first")
    with pytest.raises(ValueError, match="already holds a bundle"):
        export_bundle(source, autoencoder, folder, "second")
    remove_bundle(folder)
    assert [path.name for path in folder.rglob("*") if path.is_file()] == ["README.md"]
    export_bundle(source, autoencoder, folder, "second")
    assert load_bundle(str(folder)).name == "second"
    with pytest.raises(ValueError, match="holds no bundle"):
        remove_bundle(tmp_path)


def test_the_place_the_autoencoder_was_saved_from_stays_private(tmp_path: Path, autoencoder: Path):
    source = tmp_path / "source"
    copy_autoencoder(autoencoder, source, 0.0, 1.0)
    config = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**config, "_name_or_path": "/home/someone"}))
    copy_autoencoder(source, tmp_path / "vae", SHIFT, SCALE)
    assert "someone" not in (tmp_path / "vae" / "config.json").read_text()


def test_what_is_no_checkpoint_is_refused_by_name(tmp_path: Path, autoencoder: Path):
    with pytest.raises(ValueError, match="no such folder"):
        read_run(tmp_path / "absent")
    with pytest.raises(ValueError, match=r"holds no checkpoint-\*"):
        read_run(tmp_path)
    (tmp_path / "checkpoint-00000001").mkdir()
    with pytest.raises(ValueError, match=r"checkpoint-00000001: there is no checksums\.json"):
        read_run(tmp_path / "checkpoint-00000001")
    with pytest.raises(ValueError, match=r"is damaged: checkpoint-00000001"):
        read_run(tmp_path)
    other = save_checkpoint(tmp_path, 2, {"config": {}}, keep=1)
    with pytest.raises(ValueError, match=r"lacks \['averaged', 'latents', 'progress'\]"):
        read_run(other)
    with pytest.raises(ValueError, match=r"autoencoder: .* holds no config\.json"):
        copy_autoencoder(tmp_path, tmp_path / "vae", 0.0, 1.0)
