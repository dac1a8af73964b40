"""The part of the web viewer's page that belongs to one browser: how it looks at the scene."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.core.structs import SHADINGS
from nerf.viewer.camera import MAX_FOVY, MAX_RADIUS, MIN_FOVY, MIN_RADIUS, OrbitCamera
from nerf.viewer.frames import Request
from nerf.viewer.settings import MODES, ViewSettings

if TYPE_CHECKING:
    import viser

SIZES = (64, 2048)  # pixels of the longer side of a picture


def camera_of(camera: "viser.CameraHandle") -> OrbitCamera:
    """The camera of a browser as one of ours, without its roll.

    Raises:
        ValueError: a number is not finite.
    """
    position, target = np.asarray(camera.position, float), np.asarray(camera.look_at, float)
    offset = position - target
    radius = float(np.linalg.norm(offset))
    if not math.isfinite(radius) or radius == 0.0:
        raise ValueError(f"camera_of: expected a camera away from its target, got {position} and {target}")
    w, x, y, z = (float(part) for part in camera.wxyz)
    right_x, right_z = 1.0 - 2.0 * (y * y + z * z), 2.0 * (x * z - w * y)  # the first axis of the rotation, in x and z
    level = math.hypot(right_x, right_z) > 1e-6
    azimuth = math.atan2(-right_z, right_x) if level else math.atan2(offset[0], offset[2])
    return OrbitCamera(
        polar=math.degrees(math.acos(min(max(float(offset[1]) / radius, -1.0), 1.0))),
        azimuth=math.degrees(azimuth),
        radius=min(max(radius, MIN_RADIUS), MAX_RADIUS),
        fovy=min(max(math.degrees(float(camera.fov)), MIN_FOVY), MAX_FOVY),
        target=(float(target[0]), float(target[1]), float(target[2])),
    )


def place(camera: Any, ours: OrbitCamera) -> None:
    """Move the camera of a browser, or the one that browsers begin with, to one of ours."""
    pose = ours.pose().numpy()
    camera.position, camera.look_at = tuple(pose[:3, 3]), ours.target
    camera.fov = math.radians(ours.fovy)


def picture_size(width: int, height: int, longest: int) -> tuple[int, int]:
    """(width, height) of the picture for a canvas of that size: its shape, with ``longest`` pixels at most on a side."""
    scale = min(longest / max(width, height, 1), 1.0)
    return max(round(width * scale), 1), max(round(height * scale), 1)


class Controls:
    """Folder "View" of one browser.

    Args:
        gui: of the browser.
        request: what it shows first.
        bound: half the edge of the scene's box.
        longest: pixels of the longer side of a picture, kept within :data:`SIZES`.
        changed: called with no arguments when a control was moved.
        move: places the camera.
    """

    def __init__(
        self,
        gui: "viser.GuiApi",
        request: Request,
        bound: float,
        longest: int,
        changed: Callable[[], None],
        move: Callable[[OrbitCamera], None],
    ):
        own = request.settings
        self.start, self.bound, self.max_spp = request, bound, own.max_spp
        with gui.add_folder("View", order=10):
            self.problem = gui.add_html("", visible=False)
            self.mode = gui.add_dropdown("Show", MODES, initial_value=own.mode)
            self.shading = gui.add_dropdown("Shading", SHADINGS, initial_value=own.shading)
            self.longest = gui.add_slider(
                "Pixels",
                *SIZES,
                64,
                min(max(longest, SIZES[0]), SIZES[1]),
                hint="of the longer side of a picture that stands still",
            )
            self.fovy = gui.add_slider("Field of view", MIN_FOVY, MAX_FOVY, 0.5, request.camera.fovy, hint="degrees, vertical")
            self.samples = gui.add_slider("Samples", 1, max(16, own.max_spp), 1, own.max_spp, hint="per pixel, standing still")
            self.front = gui.add_button_group("Look from", ("front", "side", "back", "top"))
        with gui.add_folder("Light and background", order=11, expand_by_default=False):
            self.light_polar = gui.add_slider("Light, polar", 0.0, 180.0, 1.0, own.light_polar, hint="degrees; 0 is above")
            self.light_azimuth = gui.add_slider(
                "Light, azimuth", -180.0, 180.0, 1.0, own.light_azimuth, hint="degrees; 0: front"
            )
            self.ambient = gui.add_slider("Ambient", 0.0, 1.0, 0.01, own.ambient)
            self.plain = gui.add_checkbox("Plain background", own.background is not None)
            self.colour = gui.add_rgb("Colour", (255, 255, 255))
        with gui.add_folder("Crop", order=12, expand_by_default=False):
            self.crops = gui.add_checkbox("Show a box alone", own.crop is not None)
            step = bound / 50.0
            self.box = [gui.add_multi_slider(axis, -bound, bound, step, (-bound, bound)) for axis in "xyz"]
        for control in self._inputs():
            control.on_update(lambda _: changed())
        self.front.on_click(lambda event: move(self._seen_from(event.target.value)))

    def _inputs(self) -> list[Any]:
        view = [self.mode, self.shading, self.longest, self.fovy, self.samples]
        light = [self.light_polar, self.light_azimuth, self.ambient, self.plain, self.colour]
        return [*view, *light, self.crops, *self.box]

    def _seen_from(self, side: str) -> OrbitCamera:
        """The first camera, from another side."""
        start, polar = self.start.camera, self.start.camera.polar
        azimuth = {"side": 90.0, "back": 180.0}.get(side, 0.0)
        return replace(start, polar=1.0 if side == "top" else polar, azimuth=azimuth, fovy=float(self.fovy.value))

    def settings(self) -> ViewSettings:
        """What the controls say."""
        crop = None
        if self.crops.value:
            low, high = zip(*(slider.value for slider in self.box), strict=True)
            thick = self.bound / 100.0
            crop = (*map(float, low), *(max(float(b), float(a) + thick) for a, b in zip(low, high, strict=True)))
        colour = tuple(channel / 255.0 for channel in self.colour.value)
        return ViewSettings(
            mode=self.mode.value,  # type: ignore[arg-type]  # one of MODES
            shading=self.shading.value,  # type: ignore[arg-type]  # one of SHADINGS
            light_polar=float(self.light_polar.value),
            light_azimuth=float(self.light_azimuth.value),
            ambient=float(self.ambient.value),
            background=colour if self.plain.value else None,  # type: ignore[arg-type]  # three of them
            crop=crop,  # type: ignore[arg-type]  # six of them
            max_spp=int(self.samples.value),
        )

    def show_problem(self, sentence: str | None) -> None:
        """Say above the controls why there is no picture."""
        from nerf.viewer.web_panel import as_html

        self.problem.content = "" if sentence is None else as_html(sentence, problem=True)
        self.problem.visible = sentence is not None
