"""Released networks that read captions become bundles with their language model inside."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from fit_models.bundle import load_bundle
from fit_models.families import empty_network
from fit_models.networks.lumina_next_config import NAMED_LUMINA_NEXT_CONFIGS
from fit_models.networks.lumina_next_diffusers import diffusers_state
from fit_models.networks.lumina_t2i_config import NAMED_LUMINA_T2I_CONFIGS
from fit_models.released.container import Container
from fit_models.released.conversion import BundleOptions, convert_released
from fit_models.released.family_choice import choose_family
from fit_models.released.state_dict import ReleasedWeights
from support.small_autoencoders import write_small_autoencoder
from support.toy_families import TOY_CONFIGS, toy_network, toy_text_encoder
from support.toy_text import write_toy_text_encoder

NEXT = TOY_CONFIGS["LuminaNext"]


@pytest.fixture
def autoencoder(tmp_path: Path) -> Path:
    return write_small_autoencoder(tmp_path / "autoencoder")


def written(folder: Path, state: dict[str, torch.Tensor]) -> Path:
    folder.mkdir()
    path = folder / "diffusion_pytorch_model.safetensors"
    save_file({key: value.clone() for key, value in state.items()}, path)
    return folder


def test_the_originals_file_and_diffusers_copy_become_the_same_bundle(
    tmp_path: Path, autoencoder: Path
):
    state = toy_network("LuminaNext").state_dict()
    options = BundleOptions(
        config=NEXT, text_encoder=toy_text_encoder(tmp_path / "gemma", "LuminaNext")
    )
    for name, tensors in (("original", state), ("port", diffusers_state(state))):
        source = written(tmp_path / name, tensors)
        convert_released(source, tmp_path / f"{name}-bundle", autoencoder, options)
    ours, port = (load_bundle(str(tmp_path / f"{x}-bundle")) for x in ("original", "port"))
    assert ours.class_names == ()
    assert (ours.defaults.num_inference_steps, ours.defaults.guidance_scale) == (30, 4.0)
    for (name, tensor), other in zip(
        ours.network.state_dict().items(), port.network.state_dict().values(), strict=True
    ):
        assert torch.equal(tensor, other), name
    assert ours.text_encoder is not None
    assert port.text_encoder is not None
    assert torch.equal(ours.text_encoder.encode("a heron"), port.text_encoder.encode("a heron"))


def test_without_its_language_model_the_message_says_where_it_is(tmp_path: Path, autoencoder: Path):
    source = written(tmp_path / "original", toy_network("LuminaNext").state_dict())
    with pytest.raises(ValueError, match=r"--text-encoder: huggingface.co/google/gemma-2b.*terms"):
        convert_released(source, tmp_path / "bundle", autoencoder, BundleOptions(config=NEXT))
    assert not (tmp_path / "bundle").exists()


def test_a_network_that_draws_classes_takes_none(tmp_path: Path, autoencoder: Path):
    source = written(tmp_path / "original", toy_network("NextDiT").state_dict())
    hub = write_toy_text_encoder(tmp_path / "gemma")
    options = BundleOptions(config=TOY_CONFIGS["NextDiT"], text_encoder=hub)
    with pytest.raises(ValueError, match="NextDiT draws classes; leave it out"):
        convert_released(source, tmp_path / "bundle", autoencoder, options)


@pytest.mark.parametrize(
    ("name", "config"),
    [
        ("Lumina-Next-2B", NAMED_LUMINA_NEXT_CONFIGS["Lumina-Next-2B"]),
        ("Lumina-T2I-5B", NAMED_LUMINA_T2I_CONFIGS["Lumina-T2I-5B"]),
    ],
)
def test_released_sizes_are_told_by_names_and_shapes(name: str, config: object):
    size = {**NAMED_LUMINA_NEXT_CONFIGS, **NAMED_LUMINA_T2I_CONFIGS}[name]
    tensors = empty_network(size).state_dict()
    weights = ReleasedWeights((), Container.SAFETENSORS, dict(tensors), (), ())
    recognised, _ = choose_family(weights, Path(), 4, None, False, "noise")
    assert (recognised.size, recognised.config) == (name, config)
