"""The viewer in a browser, by viser: ``--viewer web``. It needs no display and works over ``ssh -L``.

Every browser has a view of its own, and sees the picture of the newest weights behind viser's (empty) scene, whose camera it
moves. What trains, renders and carries out commands is :mod:`nerf.viewer.session`.
"""

import importlib.util
import math
import socket
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from nerf.config.config import Config
from nerf.core import console
from nerf.core.errors import UserError
from nerf.viewer.camera import OrbitCamera
from nerf.viewer.session import Session
from nerf.viewer.status import Phase
from nerf.viewer.view import View
from nerf.viewer.web_access import Access, is_loopback, listen
from nerf.viewer.web_controls import Controls, camera_of, picture_size, place
from nerf.viewer.web_panel import Panel
from nerf.viewer.web_server import serving

if TYPE_CHECKING:
    import viser

UPDATE_SECONDS = 0.25  # between two looks at how the training stands
LONGEST = 512  # pixels of the longer side of a picture, unless --W and --H are larger
MOVING_QUALITY = 60  # of the JPEG of a picture that will soon be replaced; one that stands still is sent without losses


def check(config: Config) -> None:
    """Refuse a viewer that cannot be opened; called before anything is read.

    Raises:
        UserError: viser is not installed, or the address cannot be listened at.
    """
    if importlib.util.find_spec("viser") is None:
        raise UserError("--viewer web needs viser: pip install 'viser>=1.1,<2'")
    listen(config.gui.viewer_host, config.gui.viewer_port).close()


def show(session: Session, config: Config, stopped: Callable[[], bool]) -> None:
    """Serve the viewer until it is closed in a browser, or until ``stopped()``.

    Raises:
        UserError: the address has been taken meanwhile.
    """
    listener = listen(config.gui.viewer_host, config.gui.viewer_port)
    access = Access.to(config.gui.viewer_host, listener.getsockname()[1])
    with serving(access, listener) as server:
        page = Page(server, session, config)
        _announce(access)
        try:
            while not (stopped() or page.closed.wait(UPDATE_SECONDS)) and session.status.phase != Phase.CLOSED:
                page.update()
        finally:
            page.end()


def _announce(access: Access) -> None:
    """Say where to look, on the screen alone: the address may hold the token."""
    line = f"viewer: {access.url}"
    if is_loopback(access.host):
        port = access.port
        line += f" (from another machine: ssh -L {port}:127.0.0.1:{port} {socket.gethostname()}, then the same address)"
    console.SafeStream(lambda: sys.stderr).write(f"{line}; Ctrl-C ends it\n")


class Page:
    """The page of all browsers.

    Args:
        server: that serves it.
        session: what it shows.
        config: the options of the run.
    """

    def __init__(self, server: "viser.ViserServer", session: Session, config: Config):
        self.server, self.session, self.config = server, session, config
        self.closed = threading.Event()
        self._onlookers: dict[int, Onlooker] = {}
        self._lock = threading.Lock()
        server.gui.configure_theme(show_logo=False, show_share_button=False, dark_mode=False)
        server.gui.set_panel_label("Somnia")
        server.gui.main_panel.dock_right()  # beside the picture, and not over it
        server.scene.set_up_direction("+y")
        place(server.initial_camera, session.start_request().camera)
        self.panel = Panel(server, session, self.closed.set)
        server.on_client_connect(self._connect)
        server.on_client_disconnect(self._disconnect)

    def update(self) -> None:
        """Show how the training stands, if anybody looks."""
        if self._onlookers:
            self.panel.update()

    def end(self) -> None:
        """Tell the browsers, and end their views."""
        with self._lock:
            onlookers = list(self._onlookers.values())
            self._onlookers.clear()
        for onlooker in onlookers:
            onlooker.close()

    def _connect(self, client: "viser.ClientHandle") -> None:
        onlooker = Onlooker(self.session, client, self.config)
        with self._lock:
            self._onlookers[client.client_id] = onlooker
        if client.client_id not in self.server.get_clients() or self.closed.is_set():  # it has left already
            self._disconnect(client)

    def _disconnect(self, client: "viser.ClientHandle") -> None:
        with self._lock:
            onlooker = self._onlookers.pop(client.client_id, None)
        if onlooker is not None:
            onlooker.close()


class Onlooker:
    """One browser: its view, its controls, and a thread that sends it pictures.

    Args:
        session: what it looks at.
        client: the browser.
        config: the options of the run.
    """

    def __init__(self, session: Session, client: "viser.ClientHandle", config: Config):
        self.client = client
        request = session.start_request()
        longest = max(LONGEST, config.output.W, config.output.H)
        self.controls = Controls(client.gui, request, config.field.bound, longest, self._changed, self._move)
        self.view: View = session.open_view(request)
        self._fovy = request.camera.fovy
        client.camera.on_update(lambda _: self._look())
        self._look()
        self._thread = threading.Thread(target=self._send, name=f"somnia-browser-{client.client_id}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """End its view; its picture in the works is cancelled."""
        self.view.close()

    def _changed(self) -> None:
        """A control was moved."""
        fovy = float(self.controls.fovy.value)
        if fovy != self._fovy:
            self._fovy = fovy
            self.client.camera.fov = math.radians(fovy)
        self._look()

    def _move(self, camera: OrbitCamera) -> None:
        place(self.client.camera, camera)

    def _look(self) -> None:
        """Ask for the picture of the browser's camera and controls."""
        try:
            camera = camera_of(self.client.camera)
        except ValueError:  # of a browser that sends nonsense
            return
        size = picture_size(self.client.camera.image_width, self.client.camera.image_height, int(self.controls.longest.value))
        self.view.show(camera=camera.with_fovy(self._fovy), settings=self.controls.settings(), size=size)

    def _send(self) -> None:
        """Send each new picture, and say why there is none."""
        number, problem = 0, None
        while not self.view.closed:
            frame = self.view.wait(after=number, timeout=UPDATE_SECONDS)
            if self.view.error != problem:
                problem = self.view.error
                self.controls.show_problem(problem)
            if frame is None:
                continue
            number = frame.number
            still = frame.scale == 1.0
            self.client.scene.set_background_image(
                frame.as_bytes(), format="png" if still else "jpeg", jpeg_quality=None if still else MOVING_QUALITY
            )
            self.client.flush()
