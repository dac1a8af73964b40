"""benchmarks/wild.py: the true colours in another light, overlap of masks, and the table."""

import json
from argparse import Namespace

import numpy as np
import pytest
import torch
from PIL import Image

from benchmarks import wild
from nerf.core.errors import UserError
from nerf.data.perturbation import draw_perturbation, perturb


def test_a_view_in_the_light_of_a_photograph_is_what_the_perturbation_makes_of_it():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 9, 4), dtype=np.uint8)
    changed, _ = perturb(pixels, draw_perturbation(5, 12, 9, colour=True, occluders=False))
    expected = changed[..., :3] / 255 * (pixels[..., 3:] / 255) + 1 - pixels[..., 3:] / 255
    found = wild.in_light(torch.from_numpy(pixels).float() / 255, 5)
    assert np.abs(found.numpy() - expected).max() <= 0.5 / 255 + 1e-6


def test_overlap_counts_photographs_with_an_occluder_and_a_mask(tmp_path):
    folder, masks = tmp_path / "photographs", tmp_path / "run" / "results" / "masks"
    (folder / "truth" / "occluders").mkdir(parents=True)
    masks.mkdir(parents=True)
    said = {"./train/r_0": {"mask": "truth/occluders/r_0.png"}}
    for i, overlap in ((1, 10), (2, 5), (3, 0)):
        truth, mask = np.zeros((10, 20), np.uint8), np.zeros((10, 20), np.uint8)
        truth[:, :10], mask[:, 10 - overlap : 20 - overlap] = 255, 200
        Image.fromarray(truth).save(folder / "truth" / "occluders" / f"r_{i}.png")
        if i < 3:
            Image.fromarray(mask).save(masks / f"train_r_{i}.png")
        said[f"./train/r_{i}"] = {"square": [0, 0, 10, 10], "mask": f"truth/occluders/r_{i}.png"}
    (folder / "truth" / "perturbation.json").write_text(json.dumps({"photographs": said}))
    assert wild.mask_iou(tmp_path / "run", folder) == pytest.approx((1 + 1 / 3) / 2)
    assert wild.mask_iou(tmp_path / "other", folder) is None


def test_photographs_that_cannot_be_perturbed_end_in_a_sentence(tmp_path, capfd):
    (tmp_path / "lego").mkdir()
    with pytest.raises(UserError, match="lego cannot be perturbed, as is said above"):
        wild.perturbed("both", Namespace(data=tmp_path, work=tmp_path / "work"))
    assert "has no transforms_train.json" in capfd.readouterr().err


def test_the_table_has_a_row_for_each_run_and_says_what_failed():
    rows = {
        "a": {"prompt": "both, wild", "test_psnr": 26.123, "mask_iou": 0.7, "seconds": 900.0},
        "b": {"prompt": "both, plain", "failure": "exit code 1"},
    }
    lines = wild.table(rows).splitlines()
    assert lines[2].startswith("| both | wild | 26.12 | - |") and "0.700" in lines[2]
    assert lines[3].startswith("| both | plain: exit code 1 |") and "both 24.86" in lines[-1]
    assert set(wild.METHODS) == {"wild", "plain", "encoder", "embedding", "mask", "robust"}
    assert set(wild.CASES) == set(wild.PUBLISHED)
