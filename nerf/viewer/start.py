"""What a window shows first, from the flags of the viewer and, where there are photographs, from their cameras."""

from dataclasses import replace

from nerf.config.config import Config
from nerf.run.evaluation import Evaluator
from nerf.viewer.camera import OrbitCamera, wrapped
from nerf.viewer.frames import Request
from nerf.viewer.settings import ViewSettings


def start_request(config: Config, evaluator: Evaluator) -> Request:
    """The first picture of a window.

    Args:
        config: the options; those of the viewer, and the default direction of the cameras.
        evaluator: of the trainer, which knows the cameras of held-out photographs.
    """
    viewer, camera = config.gui, config.camera
    start = OrbitCamera(camera.default_polar, camera.default_azimuth, viewer.radius, viewer.fovy)
    if evaluator.held_out:
        seen = OrbitCamera.seen_by(evaluator.show_views(1, config.output.H, config.output.W))
        start = replace(
            seen,
            radius=viewer.radius if config.asked("radius") else seen.radius,
            fovy=viewer.fovy if config.asked("fovy") else seen.fovy,
        )
    light_azimuth = wrapped(viewer.light_phi)  # the windows have a slider for it
    settings = ViewSettings(light_polar=viewer.light_theta, light_azimuth=light_azimuth, max_spp=viewer.max_spp)
    return Request(start, settings, config.output.W, config.output.H)
