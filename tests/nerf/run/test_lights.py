"""Lights of pictures: which pictures, how they are read, their vectors, the walk, the files, and sentences for bad input."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from nerf.core import images
from nerf.core.errors import UserError
from nerf.core.structs import RenderSettings
from nerf.data.camera_path import CameraPath
from nerf.data.patches import small_picture
from nerf.run import hallucination, lights
from nerf.run.lights import Light, find_pictures, lights_of, read_picture, walk
from tests.nerf import wild
from tests.nerf.analytic import image_rays

SHOWING = RenderSettings(training=False, view_dependent=True)


def save(path, colour=(10, 20, 30), size=(40, 30), **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, colour).save(path, **options)
    return path


def test_files_and_folders_are_found_in_order(tmp_path):
    paths = [save(tmp_path / "some" / name) for name in ("b.png", "a.jpg")]
    single = save(tmp_path / "single.png")
    (tmp_path / "some" / "notes.txt").write_text("x")
    found = find_pictures([str(single), str(tmp_path / "some")])
    assert found == [single, paths[1], paths[0]] and find_pictures([]) == []


def test_what_is_no_picture_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="--hallucinate .*gone.png does not exist"):
        find_pictures([str(tmp_path / "gone.png")])
    with pytest.raises(UserError, match="holds no picture"):
        find_pictures([str(tmp_path)])
    (tmp_path / "a.png").write_text("no picture")
    with pytest.raises(
        UserError, match=r"--hallucinate .*a.png cannot be read: it is not a picture.*replace the file, or leave it"
    ):
        find_pictures([str(tmp_path)])
    cut = save(tmp_path / "cut" / "b.png", size=(400, 300))
    cut.write_bytes(cut.read_bytes()[:-60])
    with pytest.raises(UserError, match=r"--hallucinate .*b.png cannot be read"):
        find_pictures([str(cut)])
    with pytest.raises(UserError, match=r"a.png"):
        read_picture(tmp_path / "a.png")


def test_pictures_are_read_as_they_are_shown(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 8
    assert read_picture(save(tmp_path / "turned.jpg", exif=exif)).shape == (40, 30, 3)
    Image.fromarray(np.full((4, 4, 4), (0, 0, 0, 51), np.uint8)).save(tmp_path / "clear.png")
    torch.testing.assert_close(read_picture(tmp_path / "clear.png"), torch.full((4, 4, 3), 0.8))
    large = read_picture(save(tmp_path / "large.png", size=(5000, 20)))
    assert max(large.shape) <= lights.LARGEST and torch.allclose(large[0, 0] * 255, torch.tensor([10.0, 20.0, 30.0]))


def test_the_vector_of_a_picture_is_that_of_training_at_the_same_small_size(tmp_path):
    model = wild.model()[0]
    pixels = torch.rand(300, 200, 3)
    Image.fromarray(images.to_uint8(pixels)).save(tmp_path / "any.png")
    (light,) = lights_of(model, [tmp_path / "any.png"])
    expected = model.appearance.encode(small_picture(read_picture(tmp_path / "any.png"), model.appearance.side)[None])[0]
    torch.testing.assert_close(light.vector, expected)
    assert light.name == "any" and not light.vector.requires_grad


def test_a_picture_of_one_pixel_has_a_vector_too(tmp_path):
    (light,) = lights_of(wild.model()[0], [save(tmp_path / "dot.png", size=(1, 1))])
    assert light.vector.isfinite().all()


def test_learned_vectors_are_known_of_training_photographs_alone(tmp_path):
    model = wild.model(appearance="embedding")[0]
    (light,) = lights_of(model, [save(tmp_path / "1.png")])
    torch.testing.assert_close(light.vector, model.appearance.embedding.weight[1].detach())
    with pytest.raises(UserError, match="of the 3 training photographs alone, and none is called other"):
        lights_of(model, [save(tmp_path / "other.png")])
    with pytest.raises(UserError, match="none is called other"):
        lights.check(model, [tmp_path / "1.png", tmp_path / "other.png"])


def test_a_scene_without_appearance_has_no_lights(tmp_path):
    model = wild.model(appearance="none")[0]
    with pytest.raises(UserError, match="--hallucinate needs a scene whose colours depend on an appearance"):
        lights_of(model, [save(tmp_path / "a.png")])


def test_the_walk_is_closed_passes_every_light_and_rests_there():
    vectors = torch.randn(3, 5, generator=torch.Generator().manual_seed(0)).double()
    path = walk(vectors, 100)
    assert path.shape == (300, 5)
    torch.testing.assert_close(path[::100], vectors)
    steps = (path.roll(-1, 0) - path).norm(dim=1)
    for k in range(3):
        near, between = steps[100 * k], steps[100 * k + 50]
        assert near < 0.05 * between, "slope 0 at a light"
    assert float(steps.max()) < 0.02 * float((vectors.roll(-1, 0) - vectors).norm(dim=1).max())
    torch.testing.assert_close(walk(vectors[:1], 4), vectors[:1].expand(4, -1))


def test_files_of_pictures_of_one_name_are_told_apart():
    made = [Light(name, torch.zeros(2, 2, 3), torch.zeros(3)) for name in ("a", "b", "a", "a_2", "a")]
    assert lights.file_names(made) == ["a", "b", "a_2", "a_2_2", "a_3"]
    long = [Light(name * 100, torch.zeros(2, 2, 3), torch.zeros(3)) for name in ("ab", "ab")]
    assert lights.file_names(long) == ["ab" * 24, "ab" * 24 + "_2"]


def test_a_picture_is_fitted_into_a_frame_with_its_proportions():
    frame = hallucination.fitted(torch.zeros(10, 40, 3), 30, 60)
    dark = (frame < 128).all(-1)
    assert frame.shape == (30, 60, 3) and dark.sum() == 15 * 60 and dark[7:22].all()


@pytest.fixture
def path():
    """Three views of 6 x 6 pixels."""
    views = image_rays(6, 6, distance=2.0, fovy=50.0).views
    if views is None:
        from nerf.core.cameras import centred_views, look_at

        position = torch.tensor([[0.0, 0.0, 2.0], [0.5, 0.0, 2.0], [1.0, 0.0, 2.0]])
        views = centred_views(look_at(position, torch.zeros(3)), torch.full((3,), 50.0), 6, 6)
    return CameraPath(views, 5.0)


def test_each_frame_is_the_scene_in_its_light(path, tmp_path):
    from nerf.core.cameras import view_rays

    model = wild.model()[0]
    save(tmp_path / "in" / "one.png", (250, 10, 10)), save(tmp_path / "in" / "two.png", (10, 10, 250))
    found = lights_of(model, find_pictures([str(tmp_path / "in")]))
    assert (found[0].vector - found[1].vector).abs().max() > 0
    asked = []

    def render(views, settings):
        asked.append(settings.appearance)
        with torch.no_grad():
            return model.render(view_rays(views), settings)

    said = []
    written = hallucination.write(found, path, render, SHOWING, tmp_path, "scene", 2, said.append)
    assert [file.stem for file in written] == ["scene_light_one", "scene_light_two", "scene_lights", "scene_light_walk"]
    assert all(Path(file).is_file() for file in written) and len(said) == 4
    count = len(path.views)
    for k, light in enumerate(found):
        for vector in asked[k * count : (k + 1) * count]:
            torch.testing.assert_close(vector, light.vector)
    torch.testing.assert_close(torch.stack(asked[2 * count :]), walk(torch.stack([light.vector for light in found]), 2))
    sheet = np.asarray(Image.open(tmp_path / "scene_lights.png"))
    assert sheet[2 + 3, 2 + 3].tolist() == [250, 10, 10], "the source picture stands beside its frames"


def test_a_training_photograph_is_known_by_its_colours_and_shows_its_light_in_all_directions(tmp_path):
    model = wild.model(count=40)[0]
    model.appearance.pictures = [torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    model.appearance.axes = torch.nn.functional.normalize(torch.stack([p[:, 0, 0] for p in model.appearance.pictures]), dim=-1)
    Image.fromarray(images.to_uint8(model.appearance.pictures[5].permute(1, 2, 0))).save(tmp_path / "any.png")
    (light,) = lights_of(model, [tmp_path / "any.png"])
    assert (
        torch.equal(light.vector, model.appearance.light(5)) and model.appearance.photograph_of(torch.rand(3, 20, 30)) is None
    )
