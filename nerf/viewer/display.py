"""Whether a window can be opened, and whether it is minimised, asked of the X server: DearPyGui ends the process without one.

Other systems than X11 have a display wherever somebody is logged in, and are not asked.
"""

import ctypes
import os
import subprocess
import sys
from typing import Any

WITHOUT_DISPLAY = (
    "the window of the viewer needs a display, and {}; use --viewer web, which a browser on any machine shows, or start "
    "the program under xvfb-run"
)
PROBE_SECONDS = 20.0
# Run by another interpreter: what ends the process there is only an answer here. Exit codes: 0 yes, 3 no display, 4 no OpenGL.
_PROBE = """
import ctypes, sys
x11 = ctypes.CDLL("libX11.so.6")
x11.XOpenDisplay.restype = ctypes.c_void_p
display = x11.XOpenDisplay(None)
if not display:
    sys.exit(3)
for name in ("libGL.so.1", "libGLX.so.0"):
    try:
        glx = ctypes.CDLL(name)
        break
    except OSError:
        pass
else:
    sys.exit(4)
sys.exit(0 if glx.glXQueryExtension(ctypes.c_void_p(display), None, None) else 4)
"""


def is_x11() -> bool:
    """Whether windows of this system are X11's."""
    return sys.platform not in ("win32", "darwin", "cygwin")


def problem() -> str | None:
    """Why no window can be opened here, for a sentence; None if it can."""
    if not is_x11():
        return None
    name = os.environ.get("DISPLAY", "")
    if not name:
        return "DISPLAY is not set here"
    try:
        found = subprocess.run([sys.executable, "-I", "-c", _PROBE], capture_output=True, timeout=PROBE_SECONDS)
    except subprocess.TimeoutExpired:
        return f"the display {name} does not answer"
    if found.returncode == 0:
        return None
    if found.returncode == 4:
        return f"the display {name} has no OpenGL (GLX; on Debian: apt-get install libgl1 libgl1-mesa-dri)"
    return f"the display {name} cannot be opened (is DISPLAY right, and may this user use it?)"


class _Attributes(ctypes.Structure):
    """XWindowAttributes of Xlib.h up to ``map_state``, with room for the rest."""

    _fields_ = [
        *((name, ctypes.c_int) for name in ("x", "y", "width", "height", "border_width", "depth")),
        ("visual", ctypes.c_void_p),
        ("root", ctypes.c_ulong),
        *((name, ctypes.c_int) for name in ("of_class", "bit_gravity", "win_gravity", "backing_store")),
        *((name, ctypes.c_ulong) for name in ("backing_planes", "backing_pixel")),
        ("save_under", ctypes.c_int),
        ("colormap", ctypes.c_ulong),
        ("map_installed", ctypes.c_int),
        ("map_state", ctypes.c_int),
        ("rest", ctypes.c_byte * 128),
    ]


# A window that is gone is no error here; the default handler would end the process. Xlib keeps it, so it is never freed.
_IGNORE = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)(lambda display, event: 0)


class WindowWatch:
    """Tells whether the window of this process with a title is mapped; DearPyGui does not say.

    Args:
        title: of the window.
    """

    def __init__(self, title: str):
        self._window: int | None = None
        self._display: Any = None
        if not is_x11():
            return
        try:
            self._x11 = ctypes.CDLL("libX11.so.6")
        except OSError:
            return
        self._x11.XOpenDisplay.restype = ctypes.c_void_p
        self._x11.XDefaultRootWindow.restype = ctypes.c_ulong
        self._x11.XSetErrorHandler(_IGNORE)
        display = self._x11.XOpenDisplay(None)
        if display:
            self._display = ctypes.c_void_p(display)
            self._window = self._find(self._x11.XDefaultRootWindow(self._display), title.encode())

    @property
    def minimised(self) -> bool:
        """Whether it is known that nobody sees the window."""
        if self._display is None or self._window is None:
            return False
        found = _Attributes()
        if not self._x11.XGetWindowAttributes(self._display, ctypes.c_ulong(self._window), ctypes.byref(found)):
            return False
        return bool(found.map_state != 2)  # IsViewable

    def close(self) -> None:
        """Leave the X server."""
        if self._display is not None:
            self._x11.XCloseDisplay(self._display)
            self._display = None

    def _find(self, window: int, title: bytes) -> int | None:
        """The window with the title below another one."""
        name = ctypes.c_char_p()
        if self._x11.XFetchName(self._display, ctypes.c_ulong(window), ctypes.byref(name)) and name.value is not None:
            same = name.value == title
            self._x11.XFree(name)
            if same:
                return window
        root, parent, count = ctypes.c_ulong(), ctypes.c_ulong(), ctypes.c_uint()
        children = ctypes.POINTER(ctypes.c_ulong)()
        places = (ctypes.byref(root), ctypes.byref(parent), ctypes.byref(children), ctypes.byref(count))
        if not self._x11.XQueryTree(self._display, ctypes.c_ulong(window), *places):
            return None
        inside = [children[i] for i in range(count.value)]
        if children:
            self._x11.XFree(children)
        return next((found for child in inside if (found := self._find(child, title)) is not None), None)
