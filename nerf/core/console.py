"""Standard streams that cannot end a program: what a closed, full or broken one refuses is dropped, and work goes on.

``2>&-`` closes stderr, ``2>/dev/full`` fills it, ``2>&1 | head`` or a closed terminal breaks it. The log of a run is a file in
its workspace and needs none of them.
"""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from typing import Any, TextIO


class SafeStream(io.TextIOBase):
    """A text stream whose writes never fail.

    Args:
        find: returns the stream to write to, or None where there is none; asked at every write.
    """

    def __init__(self, find: Callable[[], TextIO | None]) -> None:
        self._find = find

    def write(self, text: str) -> int:
        """Write at once, or drop what the stream refuses; returns the number of characters of ``text``."""
        stream = self._find()
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):  # ValueError: the stream was closed
                _write(stream, text)
        return len(text)

    def flush(self) -> None:
        """Flush what others wrote to the stream."""
        stream = self._find()
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        stream = self._find()
        try:
            return stream is not None and stream.isatty()
        except ValueError:
            return False

    def fileno(self) -> int:
        """The descriptor of the stream.

        Raises:
            OSError: it has none.
        """
        stream = self._find()
        if stream is None:
            raise io.UnsupportedOperation("there is no stream")
        return stream.fileno()

    def __getattr__(self, name: str) -> Any:
        """Everything else, such as ``encoding`` and ``buffer``, is the stream's own."""
        return getattr(self._find(), name)


def _write(stream: TextIO, text: str) -> None:
    """Write past the buffers where there is a descriptor: what is refused now is not tried again, not even on exiting."""
    try:
        descriptor = stream.fileno() if os.name == "posix" and not isinstance(stream, SafeStream) else None
    except OSError:  # a stream in memory
        descriptor = None
    if descriptor is None:
        stream.write(text)
        stream.flush()
        return
    stream.flush()
    data = memoryview(text.encode(stream.encoding or "utf-8", errors="backslashreplace"))
    while data:
        data = data[os.write(descriptor, data) :]


def open_missing_descriptors() -> None:
    """Open the null device in place of standard descriptors that are closed, or the next file would get their number.

    Whatever libraries print to stderr would then go into that file, a checkpoint for instance.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)


@contextlib.contextmanager
def protected() -> Iterator[None]:
    """Context of a whole program in which ``sys.stdout`` and ``sys.stderr`` are such streams."""
    open_missing_descriptors()
    output, errors = sys.stdout, sys.stderr
    safe = SafeStream(lambda: output), SafeStream(lambda: errors)
    sys.stdout, sys.stderr = safe
    try:
        yield
    finally:
        for stream in safe:
            stream.flush()
        sys.stdout, sys.stderr = output, errors
