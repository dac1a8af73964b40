"""Scene normalisation by flags: centre, up direction and scale; up from EXIF, formats and the main plane of the points."""

import math

import pytest
import torch
from PIL import Image, ImageOps

from nerf.config.config import parse
from nerf.config.photographs import PlacementConfig
from nerf.core.errors import UserError
from nerf.data.image_store import exif_orientation, read_header
from nerf.data.normalize import normalize_scene
from nerf.data.upright import estimate_up, main_plane, mean_up
from tests.nerf.data.test_normalize import circle, half_fovs

CENTRE = (1.0, -2.0, 0.5)


def ground(count=400, normal=(0.0, 0.0, 1.0), seed=0):
    """Points on a plane with a little noise, and a third as many anywhere."""
    random = torch.Generator().manual_seed(seed)
    normal = torch.nn.functional.normalize(torch.tensor(normal).double(), dim=0)
    flat = torch.randn(count, 3, generator=random).double()
    flat = flat - (flat @ normal)[:, None] * normal + 1e-3 * torch.randn(count, 1, generator=random) * normal
    return torch.cat([flat, 2 * torch.randn(count // 3, 3, generator=random).double()])


def placed(pose, points=None, up=None, orientation=None, **options):
    return normalize_scene(
        pose, half_fovs(len(pose)), None, False, 1.0, points, None, up, orientation, PlacementConfig(**options)
    )


def centre_of(normalization):
    return normalization.to_source[:3, 3]


def up_of(normalization):
    return normalization.to_source[:3, 1] * normalization.scale


def test_centres_are_the_mean_camera_the_meeting_of_the_axes_and_the_median_point():
    pose, points = circle(height=2.0, centre=CENTRE), ground() + torch.tensor([9.0, 0.0, 0.0]).double()
    torch.testing.assert_close(centre_of(placed(pose, points, scene_center="cameras")), pose[:, :3, 3].mean(0))
    torch.testing.assert_close(centre_of(placed(pose, points, scene_center="axes")), torch.tensor(CENTRE).double())
    torch.testing.assert_close(centre_of(placed(pose, points, scene_center="points")), points.median(0).values)
    assert placed(pose, points, scene_center="axes").kind == "given"


def test_scales_hold_all_cameras_end_at_the_nearest_hold_the_points_or_are_given():
    pose = torch.cat([circle(radius=4.0, height=0.0), circle(radius=2.0, height=0.0)])
    points = ground()
    distance = points.norm(dim=-1).sort().values[round(0.98 * len(points)) - 1].item()
    for scale, half_side in (("cameras", 4.4), ("nearest", 2.0), ("2.5", 2.5), ("points", 1.1 * distance)):
        found = placed(pose, points, scene_center="axes", scene_scale=scale)
        assert 1 / found.scale == pytest.approx(half_side, rel=0.05 if scale == "points" else 1e-6)


def test_a_given_box_of_a_dataset_may_be_replaced():
    box = torch.zeros(3).double(), 7.0
    options = PlacementConfig(scene_center="axes", scene_scale="3")
    found = normalize_scene(circle(centre=CENTRE), half_fovs(), box, True, 1.0, options=options)
    torch.testing.assert_close(centre_of(found), torch.tensor(CENTRE).double())
    assert 1 / found.scale == pytest.approx(3.0)


def test_the_box_of_what_is_seen_is_what_the_cameras_see_in_common_around_the_point_that_they_look_at():
    pose = circle(height=0.0, centre=CENTRE)
    found = placed(pose, scene_scale="seen")
    assert found.kind == "seen" and found.unbounded
    torch.testing.assert_close(centre_of(found), torch.tensor(CENTRE).double())
    assert 1 / found.scale == pytest.approx(4.0 * math.tan(0.3))  # the ball that touches the sides of the field of view
    around = placed(pose, scene_scale="seen", scene_center="cameras")
    assert 1 / around.scale == pytest.approx(4.0 * math.tan(0.3)) and around.kind == "seen"
    wide = normalize_scene(pose, torch.full((12,), 1.2).double(), None, False, 1.0, options=PlacementConfig(scene_scale="seen"))
    assert wide.kind == "scene" and 1 / wide.scale == pytest.approx(4.4)  # tan(1.2) is 2.6: the cameras' box is smaller


def test_what_is_seen_makes_no_box_where_another_is_smaller_or_prescribed_or_the_cameras_look_outwards_or_in_parallel():
    options = PlacementConfig(scene_scale="seen")
    box = torch.zeros(3).double(), 7.0
    prescribed = normalize_scene(circle(), half_fovs(), box, False, 1.0, options=options)
    assert prescribed.kind == "box" and 1 / prescribed.scale == pytest.approx(7.0)
    assert placed(circle(), 0.1 * ground(), scene_scale="seen").kind == "points"
    outwards = circle(height=0.0)
    outwards[:, :3, [0, 2]] *= -1
    assert placed(outwards, scene_scale="seen").kind == "scene"
    parallel = circle(span=1e-3, height=0.0)
    parallel[:, :3, :3] = parallel[0, :3, :3]
    parallel[:, 0, 3] = torch.arange(12).double()
    assert placed(parallel, scene_scale="seen").kind == "scene"


def test_the_nearest_camera_in_the_centre_is_refused():
    pose = circle(height=0.0)
    pose[0, :3, 3] = 0
    with pytest.raises(UserError, match="units apart|one position|units wide"):
        placed(pose, scene_center="axes", scene_scale="nearest")


@pytest.mark.parametrize("options", [{"scene_center": "points"}, {"scene_scale": "points"}])
@pytest.mark.parametrize("points", [None, torch.zeros(5, 3).double()])
def test_points_that_are_missing_are_said(options, points):
    flag = next(iter(options))
    with pytest.raises(UserError, match=f"--{flag} points needs at least 30 sparse points .* has {0 if points is None else 5}"):
        placed(circle(), points, **options)


@pytest.mark.parametrize("normal", [(0.0, 0.0, 1.0), (0.3, -0.2, 0.9), (0.0, 0.2, -1.0)])
def test_the_main_plane_is_found_among_outliers(normal):
    wanted = torch.nn.functional.normalize(torch.tensor(normal).double(), dim=0)
    _, found, share = main_plane(ground(normal=normal))
    assert (found @ wanted).abs() > 0.9999 and 0.6 < share < 0.9


def test_up_is_the_side_of_the_plane_that_the_cameras_call_up():
    tilted = torch.nn.functional.normalize(torch.tensor([0.25, 0.0, 1.0]).double(), dim=0)
    found = up_of(placed(circle(), ground(normal=tuple(tilted.tolist())), scene_up="plane"))
    torch.testing.assert_close(found, tilted, atol=2e-3, rtol=0)
    below = up_of(placed(circle(), ground(normal=tuple((-tilted).tolist())), scene_up="plane"))
    torch.testing.assert_close(below, tilted, atol=2e-3, rtol=0)


def test_points_without_a_plane_are_refused():
    scattered = torch.randn(500, 3, generator=torch.Generator().manual_seed(0)).double()
    with pytest.raises(UserError, match="--scene_up plane finds no plane: the best one holds . % of the sparse points"):
        placed(circle(), scattered, scene_up="plane")
    with pytest.raises(UserError, match="--scene_up plane needs the sparse points"):
        placed(circle(), None, scene_up="plane")


def test_up_of_the_cameras_is_not_snapped_and_an_axis_is_taken_as_given():
    pose = circle(span=90.0, height=1.0)
    mean = mean_up(pose)
    torch.testing.assert_close(up_of(placed(pose, scene_up="cameras")), mean)
    assert up_of(placed(pose)).tolist() == pytest.approx([0, 0, 1])
    for axis, vector in (("x", [1, 0, 0]), ("-y", [0, -1, 0]), ("-z", [0, 0, -1])):
        assert up_of(placed(pose, scene_up=axis)).tolist() == pytest.approx(vector)


def test_up_that_a_format_knows_is_used_but_for_the_flag():
    known = torch.tensor([0.0, 0.6, 0.8]).double()
    torch.testing.assert_close(up_of(placed(circle(), up=known)), known)
    assert up_of(placed(circle(), up=known, scene_up="z")).tolist() == pytest.approx([0, 0, 1])


def shown_top(orientation):
    """The direction in camera axes, x right and y up, of what is at the top where the picture is shown; asked of Pillow."""
    for direction, (column, row) in {(-1, 0): (0, 2), (1, 0): (4, 2), (0, 1): (2, 0), (0, -1): (2, 4)}.items():
        stored = Image.new("L", (5, 5))
        stored.putpixel((column, row), 255)
        stored.getexif()[0x0112] = orientation
        if ImageOps.exif_transpose(stored).getpixel((2, 0)):
            return direction
    raise AssertionError


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_that_are_shown_turned_are_upright_as_they_are_shown(orientation):
    pose, (x, y) = circle(span=60.0), shown_top(orientation)
    held = pose.clone()  # what is at the top of the shown picture points up in the world
    held[:, :3, 0] = x * pose[:, :3, 1] + y * pose[:, :3, 0]
    held[:, :3, 1] = y * pose[:, :3, 1] - x * pose[:, :3, 0]
    assert (torch.linalg.det(held[:, :3, :3]) > 0.9).all()
    tags = torch.full((len(pose),), orientation)
    assert estimate_up(held, tags)[2] > 0.8
    assert (estimate_up(held)[2] > 0.8) == (orientation == 1)


def test_the_tag_of_a_photograph_is_read_and_its_pixels_stay_as_they_are(tmp_path):
    image = Image.new("RGB", (5, 3))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    image.save(tmp_path / "b.png")
    image.save(tmp_path / "c.jpg", exif=b"Exif\x00\x00broken")
    assert [exif_orientation(tmp_path / name) for name in ("a.jpg", "b.png", "c.jpg")] == [6, 1, 1]
    assert read_header(tmp_path / "a.jpg")[:2] == (5, 3)


def test_tags_that_were_left_behind_in_turned_pictures_are_not_believed():
    tags = torch.tensor([6, 8, 3] * 4)
    assert estimate_up(circle(), tags).tolist() == [0, 0, 1]


@pytest.mark.parametrize("word", ["big", "0", "-1", "nan", "inf"])
def test_a_scale_is_a_word_or_a_positive_number(word):
    with pytest.raises(UserError, match="--scene_scale must be auto, cameras, nearest, points, seen, or half the side"):
        parse(["--data", "x", f"--scene_scale={word}"])
    assert parse(["--data", "x", "--scene_scale", "2.5"]).data.scene_scale == "2.5"


def test_a_scale_too_small_for_single_precision_is_refused():
    with pytest.raises(UserError, match="--scene_scale give a box 2e-09 units wide, which single precision cannot hold"):
        normalize_scene(
            circle(), torch.full((12,), 0.5).double(), None, False, 1.0, options=PlacementConfig(scene_scale="1e-9")
        )
