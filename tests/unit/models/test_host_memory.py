"""Freed memory is kept for the next step, where the C library is one that can be told so."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys

import pytest

from fit_models import host_memory

_MAPPED_BYTES = """
import ctypes, sys, torch
from fit_models.host_memory import keep_freed_memory
class Info(ctypes.Structure):
    names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in names.split()]
mallinfo = ctypes.CDLL(None).mallinfo2
mallinfo.restype = Info
if sys.argv[1] == "keep":
    assert keep_freed_memory()
before = mallinfo().hblkhd
kept = torch.ones(5_000_000)
print(mallinfo().hblkhd - before)
"""


def _has_mallinfo2() -> bool:
    return platform.libc_ver()[0] == "glibc" and hasattr(ctypes.CDLL(None), "mallinfo2")


@pytest.fixture(autouse=True)
def without_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in host_memory._SET_BY_HAND:
        monkeypatch.delenv(name, raising=False)


@pytest.mark.skipif(not _has_mallinfo2(), reason="no glibc that counts its mappings")
def test_large_tensors_are_no_mappings_of_their_own() -> None:
    kept, left = (
        int(subprocess.check_output([sys.executable, "-c", _MAPPED_BYTES, how]))
        for how in ("keep", "leave")
    )
    assert kept == 0
    assert left >= 20_000_000


@pytest.mark.parametrize("name", host_memory._SET_BY_HAND)
def test_what_the_environment_sets_is_left(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "1")
    monkeypatch.setattr(ctypes, "CDLL", lambda _: pytest.fail("asked for the C library"))
    assert not host_memory.keep_freed_memory()


def test_other_systems_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())  # no glibc, no mallopt
    assert not host_memory.keep_freed_memory()
    monkeypatch.setattr(sys, "platform", "darwin")
    assert not host_memory.keep_freed_memory()


def test_products_are_kept_in_small_numbers_unless_somebody_said_otherwise(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("ONEDNN_PRIMITIVE_CACHE_CAPACITY", raising=False)
    monkeypatch.setenv("LRU_CACHE_CAPACITY", "7")
    host_memory.bound_product_caches()
    assert os.environ["ONEDNN_PRIMITIVE_CACHE_CAPACITY"] == "128"
    assert os.environ["LRU_CACHE_CAPACITY"] == "7"
