"""Encoders by name."""

import pytest
import torch

from nerf.fields.encoding import make_encoder


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("grid", dict(num_levels=4, desired_resolution=32, log2_hashmap_size=10)),
        ("frequency", dict(degree=4)),
        ("sh", dict(degree=3)),
    ],
)
def test_every_encoder_has_the_output_width_it_declares(kind, options):
    encoder = make_encoder(kind, input_dim=3, **options)
    at = torch.nn.functional.normalize(torch.randn(5, 3), dim=-1)
    assert encoder(at).shape == (5, encoder.output_dim)


def test_an_unknown_encoder_is_refused_with_the_known_ones():
    with pytest.raises(ValueError, match="grid, frequency, sh"):
        make_encoder("wavelet")
