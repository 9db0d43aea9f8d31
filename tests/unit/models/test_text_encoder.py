"""What a network is given of a prompt: the tokens it was trained with, and the states it reads."""

import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoModel

from fit_models.families import CaptionReading, caption_reading
from fit_models.text_encoder import TextEncoder, check_channels, load_text_encoder
from fit_models.text_encoder_copy import check_text_encoder, copy_text_encoder
from support.toy_families import TOY_CONFIGS, toy_text_encoder
from support.toy_text import CHANNELS, write_toy_text_encoder

EOS, BOS, A, B = 1, 2, 4, 5
CPU = torch.device("cpu")


def encoder_of(folder: Path, name: str, prefix: str = "") -> TextEncoder:
    copy_text_encoder(toy_text_encoder(folder / "hub", name), CHANNELS, folder)
    reading = caption_reading(TOY_CONFIGS[name])
    assert reading is not None
    return load_text_encoder(folder, reading, CPU, torch.float32, prefix)


def test_gemma_is_told_where_a_prompt_begins_and_llama_where_it_ends_too(tmp_path: Path):
    gemma = encoder_of(tmp_path / "gemma", "LuminaNext")
    llama = encoder_of(tmp_path / "llama", "LuminaT2I")
    assert gemma.token_ids("ab") == [BOS, A, B]
    assert gemma.token_ids("") == [BOS]
    assert llama.token_ids("ab") == [BOS, A, B, EOS]
    assert llama.token_ids("") == [BOS, EOS]


def test_states_are_those_of_the_layer_the_family_reads(tmp_path: Path):
    for name, position in (("LuminaNext", 2), ("LuminaT2I", 3)):  # of embeddings and three layers
        encoder = encoder_of(tmp_path / name, name)
        model = AutoModel.from_pretrained(tmp_path / name / "text_encoder", dtype=torch.float32)
        ids = torch.tensor([encoder.token_ids("a kite")])
        with torch.inference_mode():
            states = model(input_ids=ids, output_hidden_states=True).hidden_states
        assert len(states) == 4
        assert torch.equal(encoder.encode("a kite"), states[position][0])


def test_an_empty_prompt_has_states(tmp_path: Path):
    states = encoder_of(tmp_path, "LuminaNext").encode("")
    assert states.shape == (1, CHANNELS)
    assert torch.isfinite(states).all()


def test_the_longest_prompt_is_read_and_one_token_more_is_refused_with_the_numbers(tmp_path: Path):
    encoder = encoder_of(tmp_path, "LuminaNext")
    assert len(encoder.encode("a" * 255)) == 256
    with pytest.raises(ValueError, match="has 257 tokens; the limit is 256"):
        encoder.token_ids("a" * 256)


def test_a_prefix_stands_before_every_prompt(tmp_path: Path):
    plain = encoder_of(tmp_path / "plain", "LuminaNext")
    prefixed = encoder_of(tmp_path / "prefixed", "LuminaNext", prefix="ab")
    assert prefixed.token_ids("ba") == plain.token_ids("abba")
    assert torch.equal(prefixed.encode(""), plain.encode("ab"))


def test_without_transformers_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    copy_text_encoder(write_toy_text_encoder(tmp_path / "hub"), CHANNELS, tmp_path)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ValueError, match=r'pip install "fit-serve\[text\]"'):
        load_text_encoder(tmp_path, CaptionReading(-2, 256), CPU, torch.float32)


def test_a_bundle_without_its_folders_says_who_puts_them_there(tmp_path: Path):
    with pytest.raises(ValueError, match=r"no folder text_encoder.*--text-encoder"):
        load_text_encoder(tmp_path, CaptionReading(-2, 256), CPU, torch.float32)


def test_what_is_not_a_language_model_of_that_width_is_refused_before_it_is_copied(tmp_path: Path):
    hub = write_toy_text_encoder(tmp_path / "hub")
    with pytest.raises(ValueError, match=f"{CHANNELS} channels, and the network reads 64"):
        check_text_encoder(hub, 64)
    (hub / "model.safetensors").rename(hub / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"no \*.safetensors"):
        check_text_encoder(hub, CHANNELS)
    (hub / "pytorch_model.bin").rename(hub / "model.safetensors")
    (hub / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"no tokenizer.json"):
        check_text_encoder(hub, CHANNELS)
    with pytest.raises(ValueError, match="3 channels, and the network reads 4"):
        check_channels(3, 4)


def test_folders_of_a_pipeline_are_taken_too(tmp_path: Path):
    copy_text_encoder(write_toy_text_encoder(tmp_path / "hub"), CHANNELS, tmp_path / "pipeline")
    copy_text_encoder(tmp_path / "pipeline", CHANNELS, tmp_path / "bundle")
    names = sorted(
        p.relative_to(tmp_path / "bundle").as_posix() for p in tmp_path.rglob("bundle/*/*")
    )
    assert names == [
        "text_encoder/config.json",
        "text_encoder/model.safetensors",
        "tokenizer/tokenizer.json",
        "tokenizer/tokenizer_config.json",
    ]
