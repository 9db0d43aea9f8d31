"""One prompt as the language model has read it.

Dimension key: Y tokens of the caption, C channels of the language model.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field

from torch import Tensor

_IDS = itertools.count()


@dataclass(frozen=True, eq=False)
class Caption:
    """States of a prompt, and a number that no other reading of any prompt has or will have.

    So what is kept by the number never has to be taken back.

    Attributes:
        prompt: the text.
        features_YC: states of the language model; they hold when a caption is given to anybody.
        caption_id: see above.
    """

    prompt: str
    features_YC: Tensor
    caption_id: int = field(default_factory=lambda: next(_IDS))

    @property
    def num_tokens(self) -> int:
        """Y."""
        return self.features_YC.shape[0]

    @property
    def num_bytes(self) -> int:
        """Memory of the states."""
        return self.features_YC.nbytes
