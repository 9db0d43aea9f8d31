"""Host memory of a process that runs networks on a CPU for long: what is kept, and what is not.

glibc maps every large allocation afresh and gives it back when it is freed, so that each step of a
network touches new pages, and the kernel must zero them first: freed memory is kept for the next
step. Elsewhere (musl, macOS, Windows) nothing is done.

oneDNN keeps the code of every product it has made for a number of rows, and torch keeps another
list of them: a thousand each. Packed batches have ever new numbers of rows, so that they fill with
more than a gigabyte that is hardly ever used again.
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

_CACHES = ("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "LRU_CACHE_CAPACITY")
_KEPT_PRODUCTS = 128  # those of some twenty numbers of rows; steps are no slower than with 1,024


def bound_product_caches() -> None:
    """Keep the code of a hundred products or so; before the first one. Values set before stay."""
    for name in _CACHES:
        os.environ.setdefault(name, str(_KEPT_PRODUCTS))


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
