"""A record of what authors released: facts for a person who looks for weights.

Knows names, places and terms; nothing is fetched or opened here.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Release:
    """Weights that somebody can download.

    Attributes:
        name: what the authors call the model.
        files: names of the files that hold the weights, or of folders at the source.
        size_bytes: of all of them together, None where it is not known.
        licence: of the weights, as far as it is stated.
        source: where they are, as an address or a repository of a hub.
        config_name: the named size of ours that they fit.
    """

    name: str
    files: tuple[str, ...]
    size_bytes: int | None
    licence: str
    source: str
    config_name: str
