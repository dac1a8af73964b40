"""Keeping freed memory: on a CPU, the page faults of large temporaries cost more than the arithmetic done in them."""

import ctypes
import sys

# Parameters of glibc's mallopt(3).
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4


def keep_freed_memory() -> bool:
    """Tell the C library to keep freed memory for the next allocation instead of handing it back to the system.

    Without this, glibc maps every block above 32 MiB anew, and each of its pages is faulted in on first touch. For the
    whole process; the peak of memory in use does not change, it is only held. Only glibc has the switch.

    Returns:
        Whether the C library understood.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and mallopt(M_MMAP_MAX, 0) == 1 and mallopt(M_TRIM_THRESHOLD, 2**31 - 1) == 1
