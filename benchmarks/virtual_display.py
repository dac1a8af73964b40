"""A display without a screen, by Xvfb: for what measures or tests a window."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from nerf.core.errors import UserError


@contextmanager
def virtual_display() -> Iterator[str]:
    """The name of a new display with OpenGL, as the variable DISPLAY takes it; it ends with the block.

    Raises:
        UserError: Xvfb is missing, or the display did not start.
    """
    if shutil.which("Xvfb") is None:
        raise UserError("a window without a screen needs Xvfb; run make system-deps, or as root: apt-get install xvfb")
    reading, writing = os.pipe()
    words = ["Xvfb", "-displayfd", str(writing), "-screen", "0", "1280x900x24", "+extension", "GLX", "-nolisten", "tcp"]
    server = subprocess.Popen(words, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    os.close(writing)
    try:
        with os.fdopen(reading) as answer:
            number = answer.readline().strip()
        if not number:
            raise UserError("Xvfb did not start; run it by hand to see why")
        yield f":{number}"
    finally:
        server.terminate()
        server.wait(10)
