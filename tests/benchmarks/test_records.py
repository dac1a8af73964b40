"""Records of measurements and results of runs: read, or refused in a sentence with a way out."""

import json

import pytest

from benchmarks import text_to_3d
from benchmarks.records import read_record, read_result
from nerf.core.errors import UserError

ROW = {"prompt": "a car", "seed": 0, "group": "view", "seconds": 3.0, "iou": 0.5}


def test_a_record_comes_back_with_all_its_figures(tmp_path):
    path = tmp_path / "record.json"
    assert read_record(path) == {}
    path.write_text(json.dumps({"a_car_seed0": ROW}))
    assert read_record(path) == {"a_car_seed0": ROW}


@pytest.mark.parametrize("text", ["", "[]", "{", '{"a": 3}', '{"a": {"prompt": 3}}', '{"a": {}}'])
def test_a_damaged_record_is_one_sentence(tmp_path, text):
    (tmp_path / "record.json").write_text(text)
    with pytest.raises(UserError, match="record.json.*delete it to measure all of them anew"):
        read_record(tmp_path / "record.json")


def test_the_records_of_this_repository_can_be_read():
    for name in ("text_to_3d", "text_to_mesh"):
        assert read_record(text_to_3d.ROOT / "docs" / "benchmarks" / f"{name}.json")


@pytest.mark.parametrize("text", [None, "", "[]", '{"seconds": "x"}', '{"seconds": 1, "train_seconds": 1, "mesh": {}}'])
def test_a_damaged_result_is_one_sentence(tmp_path, text):
    if text is not None:
        (tmp_path / "result.json").write_text(text)
    with pytest.raises(UserError, match="result.json.*; run the benchmark again"):
        read_result(tmp_path)


def test_a_result_is_read(tmp_path):
    (tmp_path / "result.json").write_text(json.dumps({"seconds": 3, "train_seconds": 2, "mesh": None, "prompt": "x"}))
    assert read_result(tmp_path).seconds == 3.0
