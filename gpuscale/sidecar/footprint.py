"""What keeps a long-lived small process small. Each step is allowed to be impossible (musl, other systems)."""

from __future__ import annotations

import gc

_M_ARENA_MAX = -8
"""From glibc's malloc.h."""


def few_arenas() -> None:
    """One heap for all threads: glibc gives each its own, which never shrinks. Call it before they start."""
    try:
        import ctypes

        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
    except (ImportError, OSError, AttributeError):
        pass


def settle() -> None:
    """After the start: give back what starting took, and spare the collector what stays for ever."""
    gc.collect()
    gc.freeze()
    try:
        import ctypes

        ctypes.CDLL(None).malloc_trim(0)
    except (ImportError, OSError, AttributeError):
        pass
