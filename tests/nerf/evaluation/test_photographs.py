"""Held-out photographs of a run are read as the run read them."""

from pathlib import Path

from nerf.config.config import parse
from nerf.data.posed_images import Photographs
from nerf.evaluation.photographs import figures


def test_photographs_in_the_wild_are_read_with_their_sky(monkeypatch):
    asked = []
    monkeypatch.setattr(Photographs, "splits_of", lambda *words: asked.append(words) or {})
    config = parse(["--data", "somewhere", "--wild"])
    assert figures(Path("mesh.glb"), config, None) == {}
    assert asked == [("somewhere", config.data, "cpu", config.field.bound, True)]
