"""Runs main.py with a window that a script drives, in a process of its own: DearPyGui ends a process where something is wrong.

    python -m tests.helpers.window SCRIPT FLAGS...

SCRIPT is the name of a generator function of tests/helpers/window_scripts.py. It is given the window, and yields conditions;
it goes on once one holds. When it is over the window is closed, as by the user.
"""

import sys
import time

import main
from nerf import gui
from tests.helpers import window_scripts

SECONDS = 60.0  # for a condition


def driven(script):
    """The window class that a script drives."""

    class Driven(gui.Window):
        """A window with a script."""

        running, condition, since = None, None, 0.0

        def step(self):
            """See :meth:`Window.step`."""
            alive = super().step()
            if self.running is None:
                self.running = script(self)
            if self.condition is None or self.condition():
                self.condition, self.since = next(self.running, False), time.monotonic()
                if self.condition is False:
                    self.condition = lambda: False
                    self.dpg.stop_dearpygui()
            elif time.monotonic() - self.since > SECONDS and self.dpg.is_dearpygui_running():
                inner = self.running
                while inner.gi_yieldfrom is not None:
                    inner = inner.gi_yieldfrom
                raise AssertionError(f"the condition in line {inner.gi_frame.f_lineno} of the scripts did not come about")
            return alive

    return Driven


if __name__ == "__main__":
    gui.WIDTH, gui.HEIGHT = 680, 440  # small pictures are rendered at once
    gui.Window = driven(getattr(window_scripts, sys.argv[1]))
    sys.exit(main.main(sys.argv[2:]))
