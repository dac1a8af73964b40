"""Memory that runs out, of the machine or of a GPU, ends as one sentence that says which flag to lower."""

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

# What is said in exceptions that have no type of their own: by torch's allocator on a CPU, CUDA's libraries, C++, the loader.
_SAID = re.compile(
    "out of memory|not enough memory|can(?:'t|not) allocate memory|(?:unable|failed) to allocate|failed to map segment|"
    "_ALLOC_FAILED|bad_alloc",
    re.I,
)


class OutOfMemoryError(MemoryError):
    """Memory ran out; the message says while doing what, and which flags lower the need."""


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an exception means that memory ran out, whoever raised it."""
    torch = sys.modules.get("torch")  # not imported: without memory, or where it is damaged, that fails as well
    if isinstance(error, MemoryError | getattr(torch, "OutOfMemoryError", MemoryError)):
        return True
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError | ImportError | OSError) and _SAID.search(str(error)) is not None


@contextmanager
def explained(doing: str, way_out: str | Callable[[], str]) -> Iterator[None]:
    """Context of work that may need too much memory; of nested ones the innermost explains.

    Args:
        doing: what it is, as in "memory ran out while DOING".
        way_out: what the user can do, such as "lower --W and --H", or a function that finds it out.

    Raises:
        OutOfMemoryError: memory ran out.
    """
    try:
        yield
    except OutOfMemoryError:
        raise
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise OutOfMemoryError(f"memory ran out while {doing}; {way_out if isinstance(way_out, str) else way_out()}") from error
