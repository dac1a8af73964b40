"""The view-conditioned prior: its encoder, its frame, and its files."""

import pytest
import torch

from guidance.prior import model, view_model
from guidance.prior.view_model import HEADINGS, azimuth_of, cameras_of, heading_target
from nerf.core.errors import UserError


@pytest.fixture(scope="module")
def prior():
    return view_model.build(tiny=True)


def cameras(azimuth, polar=75.0):
    azimuth = torch.as_tensor(azimuth, dtype=torch.float32)
    fill = torch.ones_like(azimuth)
    return {"polar": polar * fill, "azimuth": azimuth, "radius": 3.2 * fill, "fovy": 20.0 * fill}


def references(count, seed=0):
    return torch.rand(count, 4, 64, 64, generator=torch.Generator().manual_seed(seed)) * 2 - 1


@pytest.mark.parametrize("azimuth", [0.0, 3.0, 5.0, 178.0, 182.5, 357.0])
def test_the_estimate_inverts_the_target_distribution(azimuth):
    found = azimuth_of(heading_target(torch.tensor([azimuth])).clamp(min=1e-9).log())
    assert abs((float(found) - azimuth + 180) % 360 - 180) < 0.01


def test_two_opposite_peaks_give_one_of_them_and_not_the_mean():
    likely = 0.51 * heading_target(torch.tensor([40.0])) + 0.49 * heading_target(torch.tensor([220.0]))
    assert abs(float(azimuth_of(likely.clamp(min=1e-9).log())) - 40) < 0.1


def test_target_distributions_sum_to_one():
    assert torch.allclose(heading_target(torch.rand(50) * 360).sum(-1), torch.ones(50))
    assert heading_target(torch.tensor([355.0]))[0, [0, HEADINGS - 1]].tolist() == pytest.approx([0.5, 0.5])


def test_the_untrained_prior_predicts_what_the_text_prior_does_where_the_reference_is_dropped(monkeypatch):
    build = model.build
    text = build(tiny=True)
    monkeypatch.setattr(view_model.prior_model, "build", lambda tiny: build(tiny=True))
    prior = view_model.build(tiny=True)
    with torch.no_grad():
        prior.encoder.null[:] = text.encode_text([""])[0]
    x, t = torch.randn(2, 192, 8, 8), torch.tensor([100, 900])
    seen = prior.see(references(2), cameras([0.0, 90.0]))
    vector, ray = cameras_of(cameras([10.0, 20.0]), torch.zeros(2))
    with torch.no_grad():
        got = prior.predict(x, t, seen, vector, ray, torch.zeros(2))
        wanted = text.predict(x, t, prior.encoder.null.expand(2, -1, -1), vector, ray)
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


def test_only_the_difference_of_the_azimuths_counts(prior):
    image, x, t = references(1), torch.randn(1, 192, 8, 8), torch.tensor([800])
    out = []
    with torch.no_grad():
        for start in (0.0, 130.0):
            seen = prior.see(image, cameras([start]))
            out.append(prior.predict(x, t, seen, *cameras_of(cameras([start + 40.0]), seen.offset)))
        seen = prior.see(image, cameras([0.0]))
        other = prior.predict(x, t, seen, *cameras_of(cameras([90.0]), seen.offset))
    torch.testing.assert_close(out[0], out[1], rtol=1e-3, atol=1e-4)
    assert (out[0] - other).abs().max() > 1e-4


def test_the_prediction_depends_on_the_reference_only_where_it_is_kept(prior):
    x, t = torch.randn(1, 192, 8, 8), torch.tensor([800])
    vector, ray = cameras_of(cameras([40.0]), torch.zeros(1))
    seen = [prior.see(references(1, seed), cameras([0.0])) for seed in (0, 1)]
    with torch.no_grad():
        kept = [prior.predict(x, t, s, vector, ray) for s in seen]
        dropped = [prior.predict(x, t, s, vector, ray, torch.zeros(1)) for s in seen]
    assert (kept[0] - kept[1]).abs().max() > 1e-4
    torch.testing.assert_close(dropped[0], dropped[1])


def test_a_written_folder_reads_back_in_half_precision(prior, tmp_path):
    view_model.save(prior, tmp_path, {"seed": 3})
    again = view_model.load(tmp_path)
    pairs = zip(prior.parameters(), again.parameters(), strict=True)
    assert all((a - b).abs().max() < 2e-3 for a, b in pairs)
    assert (tmp_path / "recipe.json").is_file()
    assert not list(tmp_path.rglob("*.bin")) and not list(tmp_path.rglob("*.pt"))


def test_the_full_model_takes_at_most_twelve_megabytes():
    prior = view_model.build()
    assert 2 * sum(p.numel() for p in prior.parameters()) < 11.9e6


def test_a_damaged_encoder_is_named(prior, tmp_path):
    view_model.save(prior, tmp_path)
    (tmp_path / "encoder" / "model.safetensors").write_bytes(b"nothing")
    with pytest.raises(UserError, match="encoder is damaged"):
        view_model.load(tmp_path)
