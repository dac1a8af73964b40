"""What users do in the window of the viewer, for tests/helpers/window.py: each yields conditions to wait for."""

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
from PIL import Image

from nerf.viewer.status import Phase


def after(seconds):
    """A condition that holds so many seconds from now."""
    end = time.monotonic() + seconds
    return lambda: time.monotonic() > end


def input_of(*words):
    """Send synthetic input; a condition that holds when it was sent and the window has had time to see it."""
    sent, done = subprocess.Popen(["xdotool", *map(str, words)]), []

    def seen():
        if sent.poll() is None:
            return False
        if not done:
            assert sent.returncode == 0, words
            done.append(after(0.3))
        return done[0]()

    return seen


def middle_of(window, item):
    """Screen position of the middle of a widget."""
    (left, top), (width, height) = window.dpg.get_item_rect_min(item), window.dpg.get_item_rect_size(item)
    x, y = window.dpg.get_viewport_pos()
    return round(x + left + width / 2), round(y + top + height / 2)


def click(window, item):
    """Click on a widget."""
    return input_of("mousemove", *middle_of(window, item), "sleep", 0.15, "mousedown", 1, "sleep", 0.15, "mouseup", 1)


def drag(window, button, dx, dy):
    """Drag the scene from its middle, in steps."""
    x, y = middle_of(window, window.panels.canvas)
    steps = [word for i in range(1, 6) for word in ("mousemove", x + dx * i // 5, y + dy * i // 5, "sleep", 0.05)]
    return input_of("mousemove", x, y, "sleep", 0.15, "mousedown", button, "sleep", 0.1, *steps, "mouseup", button)


def screenshot(window, name):
    """Write the window as it is drawn to a PNG of the folder of the run."""
    path = Path(window.session.status.workspace, name)
    yield after(0.5)
    window.dpg.output_frame_buffer(str(path))
    settled = after(0.3)
    yield lambda: path.is_file() and settled()


def complete(window):
    """A condition: the scene is shown at full size as it was asked for last, and nothing changes any more."""
    view = window.view
    version = view.show()
    return lambda: (
        view.frame is not None
        and view.frame.version == version
        and view.frame.scale == 1.0
        and (window.shown == view.frame.number)
    )


def look_around(window):
    """With the mouse alone, in a run that only shows: turn, shift, zoom, resize, minimise, take pictures."""
    view, camera = window.view, window.view.request.camera
    yield complete(window)
    yield drag(window, 1, 100, -50)
    turned = view.request.camera
    assert turned == camera.orbit(100, -50) and turned != camera, (turned, camera)
    yield drag(window, 3, 60, 20)
    assert view.request.camera.radius == turned.radius and view.request.camera.target != turned.target
    shifted = view.request.camera
    yield input_of("mousemove", *middle_of(window, window.panels.canvas), "sleep", 0.1, "click", 4, "sleep", 0.1, "click", 4)
    assert view.request.camera.radius < shifted.radius
    near = view.request.camera
    yield input_of("mousemove", *middle_of(window, "phase"), "mousedown", 1, "mousemove_relative", 20, 20, "mouseup", 1)
    assert view.request.camera == near  # a drag beside the scene
    yield complete(window)
    yield from screenshot(window, "window.png")
    pixels = np.asarray(Image.open(Path(window.session.status.workspace, "window.png")).convert("RGB"), float) / 255
    wide, high = window.size
    shown = pixels[:high, :wide]
    assert shown.shape == view.frame.pixels.shape and abs(shown - view.frame.pixels).max() < 0.02
    yield from change_settings(window)
    window.dpg.set_viewport_width(740)
    window.dpg.set_viewport_height(420)
    yield lambda: view.request.width > 340 and view.request.height < 400
    yield complete(window)
    yield from hide_and_show(window)
    yield click(window, "first camera")
    assert view.request.camera == camera


def change_settings(window):
    """Widgets change the settings of the view."""
    dpg, view = window.dpg, window.view
    for tag, value in (("shading", "normal"), ("mode", "depth"), ("max_spp", 3), ("fovy", 33.0), ("ambient", 0.5)):
        dpg.set_value(tag, value)
    yield click(window, "own_background")
    settings = view.request.settings
    assert (settings.shading, settings.mode, settings.max_spp, settings.ambient) == ("normal", "depth", 3, 0.5)
    assert view.request.camera.fovy == 33.0 and settings.background == (1.0, 1.0, 1.0) and settings.crop is None
    yield lambda: view.frame.request == view.request and view.frame.samples == 3
    dpg.set_value("crop", True)
    dpg.set_value("crop_low", [0.2, -0.5, -0.5])
    dpg.set_value("crop_high", [-0.3, 0.5, 0.5])
    window.panels._settings_changed()
    low, high = view.request.settings.crop[:3], view.request.settings.crop[3:]
    assert np.allclose(low, (-0.3, -0.5, -0.5)) and np.allclose(high, (0.2, 0.5, 0.5))


def hide_and_show(window):
    """A minimised window uploads nothing."""
    found = subprocess.run(["xdotool", "search", "--name", "^Somnia"], capture_output=True, text=True, check=True)
    (number,) = found.stdout.split()
    yield input_of("windowunmap", number)
    yield lambda: window.minimised
    assert not window.session.renderer.looked_at
    uploads = window.picture.uploads
    window.view.show(camera=window.view.request.camera.orbit(5, 5))
    yield after(1.0)
    assert window.picture.uploads == uploads
    yield input_of("windowmap", number)
    yield lambda: not window.minimised and window.picture.uploads > uploads


def train(window):
    """Stop and go on, edit the prompt, save, export and start over by clicks; then close in the middle of the training."""
    session, dpg = window.session, window.dpg
    yield lambda: session.status.step >= 2
    yield click(window, "go")
    yield lambda: session.status.phase is Phase.PAUSED
    at = session.status.step
    yield after(0.5)
    assert session.status.step == at and dpg.get_item_label("go") == "Start"
    dpg.set_value("prompt", "a red cone")
    yield click(window, "use prompt")
    yield lambda: session.status.prompt == "a red cone"
    yield click(window, "save")
    yield lambda: any("saved" in message.text for message in session.messages())
    yield click(window, "export")
    yield lambda: any("exported the mesh" in message.text for message in session.messages())
    yield from screenshot(window, "window.png")
    yield click(window, "over")
    yield click(window, "confirmed")
    yield lambda: session.status.step == 0
    yield click(window, "go")
    yield lambda: session.status.step >= 3 and len(session.history.points) > 0
    yield lambda: dpg.get_value("phase") == "training" and window.panels._series


def be_stopped(window):
    """A signal while it trains."""
    yield lambda: window.session.status.step >= 2
    os.kill(os.getpid(), signal.SIGTERM)
    yield lambda: False


def fail_to_render(window):
    """An error in rendering is shown in the window."""
    yield complete(window)
    window.session.snapshots.current.model.render = lambda rays, settings: 1 / 0
    window.view.show(camera=window.view.request.camera.orbit(5, 5))
    yield lambda: "not foreseen" in window.dpg.get_value("problem")
