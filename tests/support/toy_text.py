"""A small language model with random weights and a tokenizer of letters, as files of transformers.

Nothing is downloaded: the vocabulary is made here.
"""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GemmaConfig, GemmaModel, LlamaConfig, LlamaModel, PreTrainedTokenizerFast

CHANNELS = 20
_LETTERS = "abcdefghijklmnopqrstuvwxyz .,0123456789"
_SPECIAL = ("<pad>", "<eos>", "<bos>", "<unk>")


def toy_tokenizer() -> PreTrainedTokenizerFast:
    """One token a letter."""
    words = {word: i for i, word in enumerate((*_SPECIAL, *_LETTERS))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")  # pyright: ignore[reportAttributeAccessIssue]
    tokenizer.decoder = decoders.Fuse()  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        unk_token="<unk>",
    )


def write_toy_text_encoder(folder: Path, channels: int = CHANNELS, llama: bool = False) -> Path:
    """Language model and tokenizer in one folder, as on the hub."""
    shape: dict[str, Any] = {
        "vocab_size": len(_SPECIAL) + len(_LETTERS),
        "hidden_size": channels,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": 8192,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if llama:
            model = LlamaModel(LlamaConfig(**shape))
        else:
            model = GemmaModel(GemmaConfig(**shape, head_dim=channels // 2))
        for parameter in model.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    toy_tokenizer().save_pretrained(folder)
    return folder
