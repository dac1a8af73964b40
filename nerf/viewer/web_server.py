"""viser's server behind a door of our own: a socket that we bind, requests that :mod:`nerf.viewer.web_access` allows.

Nothing here contacts another machine: viser's tunnel for sharing is off.
"""

import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from nerf.core.errors import UserError
from nerf.viewer.web_access import Access

if TYPE_CHECKING:
    import viser

_starting = threading.Lock()


@contextmanager
def serving(access: Access, listener: socket.socket) -> Iterator["viser.ViserServer"]:
    """A server while the block runs. From then on the process prints nothing by rich, as viser does.

    Args:
        access: asked about every request.
        listener: the socket that it answers at; closed at the end.

    Raises:
        UserError: this version of viser cannot be guarded.
    """
    import rich

    # viser prints to stdout when it starts, and when its thread ends, which on a busy machine is after stop() has returned.
    rich.get_console().quiet = True
    try:
        server = _start(access, listener)
        try:
            yield server
        finally:
            server.stop()
    finally:
        listener.close()


def _start(access: Access, listener: socket.socket) -> "viser.ViserServer":
    """Make viser's server with our socket and our question before its own answers.

    It has no parameters for either, but serves by ``websockets.asyncio.server.serve``, looked up when it starts; while it
    starts, that is a function which passes both on.
    """
    import viser
    from websockets.asyncio import server as module

    serve: Callable[..., Any] = module.serve
    passed: list[bool] = []

    def ours(handler: Any, host: str, port: int, *, process_request: Any, **options: Any) -> Any:
        passed.append(True)
        return serve(handler, sock=listener, process_request=access.guarded(process_request), **options)

    with _starting:
        setattr(module, "serve", ours)  # noqa: B010  # a class there, which no type checker lets go
        try:
            server = viser.ViserServer(host=access.host, port=access.port, verbose=False)
        finally:
            setattr(module, "serve", serve)  # noqa: B010
    server.request_share_url = lambda verbose=True: None  # type: ignore[method-assign]
    if not passed:
        server.stop()
        raise UserError(f"viser {viser.__version__} cannot be guarded here; pip install 'viser>=1.1.1,<1.2'")
    return server
