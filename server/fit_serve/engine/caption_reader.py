"""Prompts to captions, beside the step loop: a thread of its own, each prompt read once.

Knows the language model and what it has read lately; not steps, networks or queues of requests.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Items
from contextlib import AbstractContextManager, nullcontext
from weakref import WeakValueDictionary

import torch

from fit_models.text_encoder import TextEncoder
from fit_serve.engine.caption import Caption
from fit_serve.engine.sequence import Sequence
from fit_serve.errors import Cancelled, EngineFailed, ServeError
from fit_serve.telemetry import Telemetry

_log = logging.getLogger(__name__)


class CaptionReader:
    """Gives sequences their captions; every sequence put in ends in one call of a function.

    Captions read lately are kept up to a number of bytes; one that a living sequence holds is
    never read a second time. A sequence whose prompts are all known waits for nobody.
    """

    def __init__(
        self,
        encoder: TextEncoder,
        max_bytes: int,
        on_read: Callable[[Items[Sequence]], None],
        on_failed: Callable[[Sequence, ServeError], None],
        telemetry: Telemetry | None = None,
        initialise: Callable[[], None] = lambda: None,
    ) -> None:
        """Start the thread.

        Args:
            encoder: reads prompts.
            max_bytes: of captions that nobody uses.
            on_read: takes sequences that have their captions, from this thread or that of `put`.
            on_failed: told of a sequence that gets none.
            telemetry: counts look-ups, seconds and bytes.
            initialise: is called in the new thread first.
        """
        self._encoder, self._max_bytes = encoder, max_bytes
        self._on_read, self._on_failed = on_read, on_failed
        self._telemetry = telemetry
        self._initialise = initialise
        self._kept: OrderedDict[str, Caption] = OrderedDict()
        self._alive: WeakValueDictionary[str, Caption] = WeakValueDictionary()
        self._bytes = 0
        self._jobs: deque[Sequence] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._work, name="captions", daemon=True)
        self._thread.start()

    @property
    def num_bytes(self) -> int:
        """Memory of captions that are kept."""
        return self._bytes

    def put(self, sequences: Iterable[Sequence]) -> None:
        """Give these sequences their captions, at once where all are known.

        Raises:
            EngineFailed: the reader has been closed.
        """
        ready: list[Sequence] = []
        with self._changed:
            if self._is_closed:
                raise EngineFailed("the reader of prompts has stopped")
            for sequence in sequences:
                if self._give(sequence):
                    ready.append(sequence)
                else:
                    self._jobs.append(sequence)
            self._changed.notify()
        if ready:
            self._on_read(ready)

    def is_alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    def close(self, timeout_s: float) -> None:
        """End the thread after the prompt it reads, waiting at most this long.

        What still waits for its captions ends as cancelled.
        """
        with self._changed:
            self._is_closed = True
            left = list(self._jobs)
            self._jobs.clear()
            self._changed.notify()
        for sequence in left:
            self._on_failed(sequence, Cancelled("the engine was stopped"))
        self._thread.join(timeout_s)

    def _work(self) -> None:
        self._initialise()
        with _own_stream():
            while (sequence := self._next()) is not None:
                self._serve(sequence)

    def _next(self) -> Sequence | None:
        with self._changed:
            while not self._jobs and not self._is_closed:
                self._changed.wait()
            return self._jobs.popleft() if self._jobs else None

    def _serve(self, sequence: Sequence) -> None:
        """Read what is missing; whoever is cancelled meanwhile is the engine's to end."""
        try:
            if not sequence.is_cancelled:
                sequence.captions = tuple(self._read(prompt) for prompt in sequence.prompts)
            self._on_read([sequence])
        except ServeError as error:  # the engine takes nobody any more
            self._on_failed(sequence, error)
        except Exception as error:  # must reach the request, not end the thread
            _log.exception("reading the prompt of %s failed", sequence.sequence_id)
            failure = EngineFailed("reading the prompt failed; the log has the cause")
            failure.__cause__ = error
            self._on_failed(sequence, failure)

    def _read(self, prompt: str) -> Caption:
        """What somebody holds already, else what the language model makes of it."""
        with self._changed:
            if (known := self._found(prompt)) is not None:
                return known
        began = time.perf_counter()
        caption = Caption(prompt, self._encoder.encode(prompt))
        if caption.features_YC.is_cuda:
            torch.cuda.current_stream().synchronize()
        seconds = time.perf_counter() - began
        with self._changed:
            self._keep(caption)
        if self._telemetry is not None:
            self._telemetry.prompt_read(seconds, self._bytes)
        return caption

    def _give(self, sequence: Sequence) -> bool:
        """Give a sequence its captions if all are known."""
        found = [self._found(prompt) for prompt in sequence.prompts]
        captions = [caption for caption in found if caption is not None]
        if self._telemetry is not None:
            self._telemetry.prompts_looked_up(len(captions), len(found) - len(captions))
        if len(captions) < len(found):
            return False
        sequence.captions = tuple(captions)
        return True

    def _found(self, prompt: str) -> Caption | None:
        if prompt in self._kept:
            self._kept.move_to_end(prompt)
            return self._kept[prompt]
        if (caption := self._alive.get(prompt)) is not None:
            self._keep(caption)
        return caption

    def _keep(self, caption: Caption) -> None:
        """Keep one more, and the newest whatever its size; those longest unused go."""
        self._alive[caption.prompt] = self._kept[caption.prompt] = caption
        self._bytes += caption.num_bytes
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].num_bytes


def _own_stream() -> AbstractContextManager[object]:
    """On a GPU steps do not wait for prompts."""
    if torch.cuda.is_available():
        return torch.cuda.stream(torch.cuda.Stream())
    return nullcontext()
