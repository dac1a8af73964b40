"""CLIP as a judge embeds the pictures of a run once, whatever it is asked about them."""

from pathlib import Path

import torch

from nerf.evaluation import scorers
from nerf.evaluation.cameras import circle


class Counting:
    """In place of CLIP: a picture is its first four numbers."""

    device, size, calls = "cpu", 2, 0

    def __init__(self, folder, device):
        pass

    def embed(self, pictures):
        self.calls += 1
        return torch.nn.functional.normalize(pictures.flatten(1)[:, :4], dim=1)

    def embed_texts(self, texts):
        return torch.eye(4)[: len(texts)]


def test_pictures_are_embedded_once_and_others_anew(monkeypatch):
    monkeypatch.setattr(scorers, "Clip", Counting)
    monkeypatch.setattr(scorers.text_weights, "from_key", lambda *_: None)
    monkeypatch.setattr(scorers.text_weights, "fetch", lambda *_: Path())
    scorer, views, pictures = scorers.ClipScorer("clip"), circle(3, 2), torch.rand(3, 3, 2, 2)
    first = scorer.logits(pictures, ["a", "b"], views)
    scorer.frontness(pictures, "a", views)
    score = scorer.figures(pictures, "a", views)["clip_score"]
    assert scorer.clip.calls == 1 and score == float(scorer.agreement(pictures, ["b", "a"], 1, views).mean())
    other = scorer.logits(pictures.flip(0), ["a", "b"], views)
    assert scorer.clip.calls == 2 and torch.equal(other, first.flip(0))
