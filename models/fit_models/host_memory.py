"""Memory of large CPU tensors is kept for the next ones instead of going back to the system.

glibc maps every large allocation afresh and gives it back when it is freed, so that each step of a
network touches new pages, and the kernel must zero them first. Elsewhere (musl, macOS, Windows)
nothing is done.
"""

from __future__ import annotations

import ctypes
import os
import sys

_SET_BY_HAND = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES")
# Of glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
# The most glibc takes: HEAP_MAX_SIZE / 2 on 64 bits.
_LARGEST_KEPT_BYTES = 32 * 2**20
# Free memory at the end of a heap beyond this goes back.
_MOST_KEPT_BYTES = 256 * 2**20


def keep_freed_memory() -> bool:
    """Raise glibc's thresholds for this process, once at its start; values set by environment stay.

    Returns:
        whether this is glibc and it took the values.
    """
    if any(name in os.environ for name in _SET_BY_HAND):
        return False
    if sys.platform != "linux":
        return False
    try:
        libc = ctypes.CDLL(None)
        _, mallopt = libc.gnu_get_libc_version, libc.mallopt
    except (OSError, AttributeError):
        return False
    mallopt.argtypes, mallopt.restype = (ctypes.c_int, ctypes.c_int), ctypes.c_int
    return bool(
        mallopt(_M_MMAP_THRESHOLD, _LARGEST_KEPT_BYTES)
        and mallopt(_M_TRIM_THRESHOLD, _MOST_KEPT_BYTES)
    )
