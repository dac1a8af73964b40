"""Whether a folder of photographs marks the object, as the recipe of a signed distance asks before they are read."""

import numpy as np
import pytest
from PIL import Image

from nerf.config.inputs import DataConfig
from nerf.core.errors import UserError
from nerf.data.probe import shows_object
from tests.nerf.data.captures import photographs


@pytest.mark.parametrize("inside", ["", "images"])
@pytest.mark.parametrize("alpha, marked", [(None, False), (255, False), (0, True)])
def test_plain_pictures_whose_cameras_will_be_found_are_judged_by_their_alpha(tmp_path, inside, alpha, marked):
    folder = tmp_path / inside
    folder.mkdir(exist_ok=True)
    pixels = np.full((4, 5, 3 if alpha is None else 4), 200, dtype=np.uint8)
    pixels[..., 3:] = 255
    if alpha is not None:
        pixels[0, 0, 3] = alpha
    Image.fromarray(pixels).save(folder / "0.png")
    assert shows_object(DataConfig(data=str(tmp_path), sfm=True)) is marked


def test_plain_pictures_without_the_flag_are_told_of_it(tmp_path):
    photographs(tmp_path, ["a.png", "b.png", "c.png"])
    with pytest.raises(UserError, match="add --sfm"):
        shows_object(DataConfig(data=str(tmp_path)))


def test_a_folder_that_does_not_exist_is_refused(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        shows_object(DataConfig(data=str(tmp_path / "no"), sfm=True))
