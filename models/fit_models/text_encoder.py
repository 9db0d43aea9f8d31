"""A language model whose hidden states a network reads captions by.

    text_encoder/         config.json and safetensors of the language model, as transformers has it
    tokenizer/            as transformers has it, with a tokenizer.json

Knows prompts, tokens and states; not networks, caches or requests. transformers is imported when a
text encoder is loaded and never before.

Dimension key: Y tokens of one caption, C channels of the language model.
"""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fit_models.device import upload
from fit_models.families import CaptionReading

TEXT_ENCODER, TOKENIZER = "text_encoder", "tokenizer"


class TextEncoder:
    """Prompts in, hidden states out, one prompt at a time: nothing is padded, so a prompt's states
    depend on no other prompt.

    May be used from several threads.

    Attributes:
        reading: what of the language model a network reads.
        channels: C.
    """

    def __init__(
        self, model: Any, tokenizer: Any, reading: CaptionReading, prefix: str = ""
    ) -> None:
        """Take the parts.

        Args:
            model: of transformers; called with token ids, it gives hidden states.
            tokenizer: of transformers.
            reading: of the family of the network.
            prefix: stands before every prompt, the empty one included.

        Raises:
            ValueError: the tokenizer has no mark of the beginning or end where one is needed.
        """
        self._model, self._tokenizer, self._prefix = model, tokenizer, prefix
        self.reading = reading
        self.channels = int(model.config.hidden_size)
        self._begin = [_mark(tokenizer, "bos_token_id")]
        self._end = [_mark(tokenizer, "eos_token_id")] if reading.marks_end else []
        self._lock = threading.Lock()  # a tokenizer of transformers may not be called twice at once

    @property
    def device(self) -> torch.device:
        """Where the language model is."""
        return next(self._model.parameters()).device

    def token_ids(self, prompt: str) -> list[int]:
        """Tokens of a prompt with its marks; the mark of the beginning is there even without text.

        Takes well under a millisecond for a prompt of usual length.

        Raises:
            ValueError: there are more tokens than the network was shown.
        """
        with self._lock:
            text = self._tokenizer(self._prefix + prompt, add_special_tokens=False)
        ids = [*self._begin, *text["input_ids"], *self._end]
        if len(ids) > self.reading.max_tokens:
            raise ValueError(
                f"has {len(ids)} tokens; the limit is {self.reading.max_tokens}, the marks of "
                "beginning and end included: shorten it"
            )
        return ids

    @torch.inference_mode()
    def encode(self, prompt: str) -> Tensor:
        """States of a prompt, [Y, C]; on a GPU, in the current stream.

        Raises:
            ValueError: as `token_ids`.
        """
        ids_1Y = upload(torch.tensor([self.token_ids(prompt)]), self.device)
        found = self._model(input_ids=ids_1Y, output_hidden_states=True, use_cache=False)
        return found.hidden_states[self.reading.hidden_state][0]


def load_text_encoder(
    folder: Path,
    reading: CaptionReading,
    device: torch.device,
    dtype: torch.dtype,
    prefix: str = "",
) -> TextEncoder:
    """Load the language model and the tokenizer of a bundle.

    Args:
        folder: of the bundle.
        reading: of the family of its network.
        device, dtype: of the language model's weights.
        prefix: stands before every prompt.

    Raises:
        ValueError: transformers is not installed, or a folder is missing or unreadable.
    """
    for name in (TEXT_ENCODER, TOKENIZER):
        if not (folder / name).is_dir():
            raise ValueError(
                f"{name}: {folder} has no folder {name}, and its network reads captions; "
                "fit-serve convert --text-encoder puts it there"
            )
    try:
        from transformers import AutoModel, AutoTokenizer
        from transformers.utils.logging import disable_progress_bar
    except ImportError as error:
        raise ValueError(
            "text_encoder: this model reads prompts, which needs transformers: "
            'pip install "fit-serve[text]"'
        ) from error
    disable_progress_bar()
    model = _loaded(
        AutoModel, folder / TEXT_ENCODER, dtype=dtype, use_safetensors=True, trust_remote_code=False
    )
    tokenizer = _loaded(AutoTokenizer, folder / TOKENIZER, trust_remote_code=False)
    model.to(device).eval().requires_grad_(False)
    return TextEncoder(model, tokenizer, reading, prefix)


def _loaded(kind: Any, folder: Path, **options: Any) -> Any:
    try:
        return kind.from_pretrained(str(folder), local_files_only=True, **options)
    except (OSError, ValueError, KeyError, ImportError) as error:
        said = " ".join(str(error).split())[:300]
        raise ValueError(f"{folder.name}: {folder} cannot be loaded: {said}") from error


def _mark(tokenizer: Any, name: str) -> int:
    mark = getattr(tokenizer, name, None)
    if mark is None:
        raise ValueError(f"tokenizer: has no {name}, and the network was shown captions with it")
    return int(mark)


def check_channels(channels: int, wanted: int) -> None:
    """Refuse a language model of another width than the network reads.

    Raises:
        ValueError: see above.
    """
    if channels != wanted:
        raise ValueError(
            f"text_encoder: its states have {channels} channels, and the network reads {wanted}"
        )
