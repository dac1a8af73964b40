"""The table of the text-to-3D benchmark: means of the first seed, failures, and wrong fronts."""

from benchmarks.text_to_3d import picture_row, slug, table

GOOD = {
    "prompt": "a purple mushroom",
    "group": "symmetric",
    "seed": 0,
    "seconds": 100.0,
    "iou": 0.8,
    "ball": 0.5,
    "silhouette": 0.9,
    "albedo": 0.05,
    "facing": 1.0,
    "front_back": None,
}


def test_mean_of_a_group_counts_the_first_seed_only():
    results = {"a": GOOD, "b": {**GOOD, "prompt": "a pink tree", "iou": 0.6}, "c": {**GOOD, "seed": 1, "iou": 0.1}}
    mean = next(line for line in table(results).splitlines() if "mean, symmetric" in line)
    assert "**0.700**" in mean and "(2;" in mean


def test_failed_run_is_a_line_of_the_table():
    failed = {"prompt": "a pink car", "group": "view", "seed": 0, "seconds": 3.0, "failure": "exit code 1"}
    assert "failed: exit code 1" in table({"a": failed})


def test_wrong_front_is_in_capitals():
    assert "WRONG" in table({"a": {**GOOD, "group": "view", "front_back": False}})


def test_workspace_name_contains_prompt_and_seed():
    assert slug("a pink tree", 2) == "a_pink_tree_seed2"


def test_row_of_pictures_shows_the_truth_above_grey_when_there_is_no_mesh():
    row = picture_row("a pink car", None, views=2, size=16)
    assert row.shape == (32, 32, 3) and (row[16:] == 128).all() and row[:16].std() > 1
