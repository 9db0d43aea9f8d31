"""Memory that a kernel is to fill is NaN before: what it leaves out shows."""

from typing import Any

import pytest
import torch
from torch import Tensor


def poison_new_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make `torch.empty` and `torch.empty_like` give NaN for the length of a test."""
    for name in ("empty", "empty_like"):
        plain = getattr(torch, name)

        def poisoned(*given: Any, _plain: Any = plain, **options: Any) -> Tensor:
            out = _plain(*given, **options)
            return out.fill_(torch.nan) if out.is_floating_point() else out

        monkeypatch.setattr(torch, name, poisoned)
