"""What the network itself keeps of captions: keys and values of every block, and the pooled state.

Computed once for each caption, by itself, so that its bits depend on no other. Belongs to the
thread that runs steps; knows captions and who uses them, not language models.

Dimension key: R modulation rows, M width of the condition.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Items
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from fit_models.captions import CaptionStates, join_captions
from fit_models.families import TextNetwork
from fit_serve.engine.batch import Batch
from fit_serve.engine.caption import Caption
from fit_serve.engine.sequence import Sequence


class CaptionCache:
    """States by caption; those of running sequences stay, the others go, the longest unused first.

    Attributes:
        hits, misses: look-ups so far, one for each sequence that begins and each of its captions.
        num_bytes: memory of the states.
    """

    def __init__(self, network: TextNetwork, max_bytes: int) -> None:
        """`max_bytes` bounds all states; those in use may exceed it."""
        self._network, self._max_bytes = network, max_bytes
        self._states: OrderedDict[int, CaptionStates] = OrderedDict()
        self._users: dict[Sequence, tuple[Caption, ...]] = {}
        self._joined: WeakKeyDictionary[Batch, CaptionStates] = WeakKeyDictionary()
        self.hits = self.misses = self.num_bytes = 0

    def hold(self, sequences: Iterable[Sequence]) -> None:
        """Have the states of these sequences until they are forgotten."""
        for sequence in sequences:
            if sequence in self._users:
                continue
            self._users[sequence] = sequence.captions
            for caption in sequence.captions:
                self._have(caption)
        self._shrink()

    def forget(self, sequences: Iterable[Sequence]) -> None:
        """Sequences that have ended hold nothing more; unknown ones are fine."""
        for sequence in sequences:
            self._users.pop(sequence, None)

    def pooled(self, caption_ids: Items[int]) -> Tensor:
        """What captions in use give to the condition, [R, M]."""
        return torch.cat([self._states[caption_id].pooled for caption_id in caption_ids])

    def joined(self, batch: Batch) -> CaptionStates:
        """States of every branch of a batch, its padding included, end to end.

        Kept for as long as the description of the batch is.
        """
        if batch not in self._joined:
            parts = [self._states[caption.caption_id] for caption in batch.captions]
            self._joined[batch] = join_captions(parts)
        return self._joined[batch]

    def _have(self, caption: Caption) -> None:
        caption_id = caption.caption_id
        if caption_id in self._states:
            self.hits += 1
            self._states.move_to_end(caption_id)
            return
        self.misses += 1
        features_YC = caption.features_YC
        if (
            features_YC.is_cuda
        ):  # made in another stream, and perhaps let go before this one is done
            features_YC.record_stream(torch.cuda.current_stream())
        states = self._network.caption_states(features_YC, [caption.num_tokens])
        self._states[caption_id] = states
        self.num_bytes += _bytes_of(states)

    def _shrink(self) -> None:
        if self.num_bytes <= self._max_bytes:
            return
        used = {c.caption_id for captions in self._users.values() for c in captions}
        for caption_id in [i for i in self._states if i not in used]:
            if self.num_bytes <= self._max_bytes:
                return
            self.num_bytes -= _bytes_of(self._states.pop(caption_id))


def _bytes_of(states: CaptionStates) -> int:
    return sum(tensor.nbytes for tensor in (states.pooled, *states.keys, *states.values))
