"""The windows that can show a session, by the word of ``--viewer``; each is imported when it is chosen.

The module of a front end has two functions: ``check(config)`` raises a UserError if it cannot be opened here, before anything
is read or trained, and ``show(session, config, stopped)`` opens it on the calling thread and returns when it is closed, or soon
after ``stopped()`` says so.
"""

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING

from nerf.config.config import Config

if TYPE_CHECKING:
    from nerf.viewer.session import Session

Show = Callable[["Session", Config, Callable[[], bool]], None]
FRONT_ENDS: dict[str, str] = {"desktop": "nerf.gui", "web": "nerf.web"}


def choose(config: Config) -> Show:
    """The ``show`` of the front end that ``--viewer`` names.

    Raises:
        UserError: it cannot be opened here.
    """
    module = importlib.import_module(FRONT_ENDS[config.gui.viewer])
    module.check(config)
    show: Show = module.show
    return show
