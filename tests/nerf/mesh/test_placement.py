"""Placement in the file: the scale and offset of the data are undone, its rotation on request only."""

import json

import numpy as np
import pytest

from nerf.core.errors import UserError
from nerf.mesh.placement import check_transform, placement, read_placing, write_transform

ROTATION = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # a quarter turn about x


def similarity(scale=3.0):
    """A rotation, a scale and an offset."""
    matrix = np.eye(4)
    matrix[:3, :3], matrix[:3, 3] = scale * ROTATION, [10.0, 20.0, 30.0]
    return matrix


def test_data_that_was_not_normalised_stays_in_its_box():
    np.testing.assert_array_equal(placement(None, "object"), np.eye(4))


def test_source_frame_takes_all_of_the_transform():
    np.testing.assert_array_equal(placement(similarity(), "source"), similarity())


def test_object_frame_differs_from_the_source_by_a_rotation_alone():
    to_source = similarity() @ np.linalg.inv(placement(similarity(), "object"))
    np.testing.assert_allclose(to_source[:3, :3], ROTATION, atol=1e-12)
    np.testing.assert_allclose(to_source[:3, 3], 0.0, atol=1e-12)


def test_written_matrices_agree_with_each_other(tmp_path):
    placing = placement(similarity(), "object")
    content = json.loads(write_transform(tmp_path, similarity(), placing, "object").read_text())
    product = np.array(content["file_to_source"]) @ np.array(content["box_to_file"])
    np.testing.assert_allclose(product, content["box_to_source"], atol=1e-12)


@pytest.mark.parametrize("wrong", [np.eye(3), np.full((4, 4), np.nan), np.diag([1.0, 1, -1, 1]), np.diag([1.0, 1, 0, 1])])
def test_transform_that_is_not_a_similarity_is_refused(wrong):
    with pytest.raises(ValueError, match="finite .4, 4.|mirrors or flattens"):
        check_transform(wrong)


def test_what_was_written_is_read_again_and_a_damaged_file_is_a_sentence(tmp_path):
    assert (read_placing(tmp_path) == np.eye(4)).all(), "there is none"
    placing = placement(np.diag([2.0, 2.0, 2.0, 1.0]), "source")
    write_transform(tmp_path, None, placing, "source")
    assert (read_placing(tmp_path) == placing).all()
    for text in (
        "{",
        "{}",
        '{"box_to_file": [[1, 2]]}',
        '{"box_to_file": [[1], [2, 3]]}',
        json.dumps({"box_to_file": [[0] * 4] * 4}),
    ):
        (tmp_path / "transform.json").write_text(text)
        with pytest.raises(UserError, match="transform.json.*; export the mesh again"):
            read_placing(tmp_path)
