"""Frames of a scene that stands still: their pixels, their resolution, and what happens when they are no longer wanted."""

import threading
import time
from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from nerf.core import cameras
from nerf.core.structs import FieldOutput, RenderSettings
from nerf.fields.base import DensityField
from nerf.render.background import ConstantBackground
from nerf.render.plain import PlainPath
from nerf.renderer import NeRFRenderer
from nerf.viewer import frames
from nerf.viewer.camera import OrbitCamera
from nerf.viewer.frames import Cancelled, Request
from nerf.viewer.renderer import FrameRenderer
from nerf.viewer.settings import ViewSettings
from nerf.viewer.snapshot import Snapshot
from tests.helpers import solids
from tests.nerf.viewer.conftest import until

EVALUATION = RenderSettings(training=False)


class SolidField(DensityField):
    """A solid of tests/helpers/solids.py as a field; a query may take a while, and may fail."""

    def __init__(self, solid, seconds=0.0):
        super().__init__()
        self.solid, self.seconds, self.bound, self.queries, self.broken = solid, seconds, 1.0, 0, False
        self.unused = torch.nn.Parameter(torch.zeros(1))

    def density(self, positions, max_level=1.0):
        """See :meth:`DensityField.density`."""
        return self.solid.density(positions)

    def query(self, points, settings):
        """See :meth:`Field.query`."""
        self.queries += 1
        time.sleep(self.seconds)
        if self.broken:
            raise RuntimeError("the field is broken")
        at = points.positions
        normal = torch.nn.functional.normalize(at, dim=-1) if settings.computes_normals else None
        return FieldOutput(density=self.density(at), albedo=self.solid.albedo(at), normal=normal)


def model_of(field, ray_batch=1024):
    return NeRFRenderer(field, ConstantBackground(), PlainPath(48, 32, 0.01), ray_batch)


class Still:
    """Snapshots of one model."""

    def __init__(self, model):
        self.current = Snapshot(1, 7, model, EVALUATION)

    @contextmanager
    def use(self):
        """See :meth:`Snapshots.use`."""
        yield self.current

    def change(self):
        """Newer weights."""
        self.current = replace(self.current, number=self.current.number + 1, step=self.current.step + 1)


@pytest.fixture
def rendering():
    """Begin to render a field: (field, training) -> (renderer, snapshots)."""
    begun = []

    def begin(field, training=lambda: False, want=lambda: None):
        snapshots = Still(model_of(field))
        renderer = FrameRenderer(snapshots, torch.device("cpu"), training, want)
        renderer.start()
        begun.append(renderer)
        return renderer, snapshots

    yield begin
    for renderer in begun:
        renderer.end()


def lettered(size=48, **settings):
    return Request(OrbitCamera(90.0, 0.0, 3.0, 30.0), ViewSettings(**settings), size, size)


def complete(view):
    """The frame at full size with all its samples."""
    until(lambda: view.frame and view.frame.scale == 1.0 and view.frame.samples == view.request.settings.max_spp)
    return view.frame


def red(pixels):
    return (pixels[..., 0] > 0.6) & (pixels[..., 1] < 0.4)


def green(pixels):
    return (pixels[..., 1] > 0.5) & (pixels[..., 0] < 0.4)


def test_a_letter_on_the_front_can_be_read_and_what_is_at_plus_x_is_on_the_right(rendering):
    renderer, _ = rendering(SolidField(solids.lettered()))
    frame = complete(renderer.open(lettered(64)))
    letter, knob = red(frame.pixels), green(frame.pixels)
    rows, columns = (sorted(set(axis.tolist())) for axis in letter.nonzero())
    assert letter[rows, columns[1]].all() and letter[rows[1], columns].all()  # an F: the stem on the left, an arm at the top
    assert letter[rows, columns[-2]].sum() < len(rows) / 4 and letter[rows[-2], columns].sum() < len(columns) / 3
    assert knob.nonzero()[1].mean() > 40


@pytest.mark.parametrize("turn", [(0.0, 0.0), (120.0, -60.0), (-400.0, 150.0)])
def test_a_frame_is_the_picture_that_the_evaluation_renders(rendering, turn):
    field = SolidField(solids.lettered())
    renderer, _ = rendering(field)
    request = replace(lettered(), width=40, height=24)
    request = replace(request, camera=request.camera.orbit(*turn))
    frame = complete(renderer.open(request))
    rays = cameras.view_rays(request.camera.views(24, 40))
    whole = model_of(field).render(rays, EVALUATION).image.detach().reshape(24, 40, 3).clamp(0, 1)
    torch.testing.assert_close(torch.tensor(frame.pixels), whole, rtol=0, atol=1e-6)
    assert (frame.step, frame.samples, frame.request) == (7, 1, request) and not frame.pixels.flags.writeable


def test_samples_of_a_pixel_add_up_to_a_smooth_edge(rendering):
    renderer, _ = rendering(SolidField(solids.lettered()))
    rough = complete(renderer.open(lettered(32))).pixels
    smooth = complete(renderer.open(lettered(32, max_spp=24))).pixels
    fine = complete(renderer.open(lettered(256))).pixels.reshape(32, 8, 32, 8, 3).mean(axis=(1, 3))
    assert abs(smooth - fine).mean() < 0.5 * abs(rough - fine).mean()


def test_modes_show_depth_and_opacity(rendering):
    renderer, _ = rendering(SolidField(solids.lettered()))
    opacity = complete(renderer.open(lettered(mode="opacity"))).pixels
    assert opacity[24, 24].min() > 0.99 and opacity[0, 0].max() < 0.01
    depth = complete(renderer.open(lettered(mode="depth"))).pixels
    assert depth[0, 0].max() < 0.01 and depth[24, 24].max() > 0.5


def test_shading_light_and_background_are_those_that_were_asked_for(rendering):
    renderer, _ = rendering(SolidField(solids.lettered()))
    asked = {"shading": "textureless", "ambient": 0.25, "background": (0.0, 0.5, 1.0)}
    lit = complete(renderer.open(lettered(light_polar=90.0, light_azimuth=0.0, **asked))).pixels
    dark = complete(renderer.open(lettered(light_polar=90.0, light_azimuth=180.0, **asked))).pixels
    assert lit[24, 24] == pytest.approx([1.0, 1.0, 1.0], abs=0.15) and dark[24, 24] == pytest.approx([0.25] * 3, abs=0.02)
    assert lit[0, 0] == pytest.approx([0.0, 0.5, 1.0], abs=1e-4)


def test_a_change_is_answered_small_and_then_refined(rendering):
    renderer, _ = rendering(SolidField(solids.lettered(), seconds=0.02))  # a chunk of 512 rays or more takes 40 ms
    view = renderer.open(lettered(128))
    seen, number = [], 0
    while not seen or seen[-1] < 1.0:
        frame = view.wait(number, timeout=30)
        number = frame.number
        seen.append(frame.scale)
    assert seen == sorted(seen) and seen[0] < 0.6 and len(seen) <= 5
    view.show(dynamic=False)
    version = view.show(camera=view.request.camera.orbit(1.0, 0.0))
    until(lambda: view.frame.version == version)
    assert view.frame.scale == 1.0


def test_a_view_in_motion_is_answered_though_it_never_stands_still(rendering):
    renderer, _ = rendering(SolidField(solids.lettered(), seconds=0.005))
    view = renderer.open(lettered(256))
    view.wait(timeout=30)
    end, first = time.monotonic() + 2.0, view.frame.number
    while time.monotonic() < end:
        view.show(camera=view.request.camera.orbit(1.0, 0.0))
        time.sleep(0.002)
    assert view.frame.number - first >= 8


def test_a_refinement_that_nobody_wants_any_more_ends_at_once(rendering):
    field = SolidField(solids.lettered(), seconds=0.01)
    renderer, _ = rendering(field)
    view = renderer.open(lettered(512))  # 262144 pixels in chunks of 1024 at most: 2.5 s and more
    until(lambda: view.frame and view.frame.scale > 0.2)
    asked = time.monotonic()
    version = view.show(camera=view.request.camera.orbit(30.0, 0.0))
    until(lambda: view.frame.version == version)
    assert time.monotonic() - asked < 1.0


def test_a_view_that_is_closed_in_the_middle_of_a_frame_leaves_the_others_alone(rendering):
    field = SolidField(solids.lettered(), seconds=0.01)
    renderer, _ = rendering(field)
    leaves, stays = renderer.open(lettered(512)), renderer.open(lettered(16))
    waiting = []
    thread = threading.Thread(target=lambda: waiting.append(leaves.wait(after=10**6)))
    thread.start()
    until(lambda: field.queries > 4)
    leaves.close()
    thread.join(5)
    assert waiting == [None]
    complete(stays)
    before = field.queries
    time.sleep(0.2)
    assert field.queries == before and renderer.looked_at


def test_two_views_are_served_in_turn(rendering):
    renderer, _ = rendering(SolidField(solids.lettered(), seconds=0.002))
    views = [renderer.open(lettered(64)), renderer.open(replace(lettered(64), camera=OrbitCamera(60.0, 90.0, 3.0, 30.0)))]
    for view in views:
        view.wait(timeout=30)
    before = [view.frame.number for view in views]
    end = time.monotonic() + 1.5
    while time.monotonic() < end:
        for view in views:
            view.show(camera=view.request.camera.orbit(1.0, 0.0))
        time.sleep(0.005)
    counts = [view.frame.number - number for view, number in zip(views, before, strict=True)]
    assert min(counts) > 2 and max(counts) - min(counts) <= 2


def test_a_hidden_view_is_not_rendered(rendering):
    field = SolidField(solids.lettered())
    renderer, _ = rendering(field)
    view = renderer.open(lettered(16))
    complete(view)
    view.show(hidden=True)
    assert not renderer.looked_at
    before = field.queries
    view.show(camera=view.request.camera.orbit(5.0, 5.0))
    time.sleep(0.2)
    assert field.queries == before
    version = view.show(hidden=False)
    until(lambda: view.frame.version == version)


def test_an_error_is_shown_until_there_is_something_else_to_render(rendering):
    field = SolidField(solids.lettered())
    renderer, snapshots = rendering(field)
    view = renderer.open(lettered(16))
    complete(view)
    field.broken = True
    view.show(camera=view.request.camera.orbit(5.0, 0.0))
    until(lambda: view.error is not None)
    assert "the field is broken" in view.error
    before = field.queries
    time.sleep(0.2)
    assert field.queries == before  # it is not tried again and again
    field.broken = False
    snapshots.change()
    renderer.wake()
    until(lambda: view.error is None and view.frame.version == 2)


def test_newer_weights_are_shown_for_a_share_of_the_time_only(rendering):
    field, wanted = SolidField(solids.lettered(), seconds=0.01), []
    renderer, snapshots = rendering(field, training=lambda: True, want=lambda: wanted.append(1))
    view = renderer.open(lettered(48, max_spp=4))
    until(lambda: view.frame and view.frame.scale > 0.5)
    number, busy, began = view.frame.number, 0.0, time.monotonic()
    while time.monotonic() - began < 2.5 or busy == 0.0:
        snapshots.change()  # a step
        renderer.wake()
        frame = view.wait(number, timeout=0.01)
        if frame is not None:
            number, busy = frame.number, busy + frame.seconds
            assert frame.samples == 1 and frame.step > 7
    assert busy < 0.4 * (time.monotonic() - began) and wanted


def test_a_picture_that_is_not_finite_is_an_error():
    field = SolidField(solids.Solid(lambda p: torch.full((len(p),), torch.nan), lambda p: torch.full_like(p, torch.nan)))
    out = frames.render(model_of(field), lettered(8).camera.views(8, 8), EVALUATION, 64)
    with pytest.raises(ValueError, match="not finite"):
        frames.picture(out, "image")


def test_a_frame_is_cancelled_between_two_chunks():
    field, seen = SolidField(solids.lettered()), []

    def go_on(done):
        seen.append(done)
        return done < 512

    with pytest.raises(Cancelled):
        frames.render(model_of(field), lettered(32).camera.views(32, 32), EVALUATION, 256, go_on)
    assert seen == [0, 256, 512]


def test_sizes_without_pixels_are_refused():
    with pytest.raises(ValueError, match="at least 1 x 1"):
        Request(width=0)
    assert Request(width=7, height=1000).size_at(0.01) == (1, 10)
