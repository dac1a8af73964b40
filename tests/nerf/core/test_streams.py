"""Random numbers: every use has a stream of its own, and seeds depend on names."""

import pytest
import torch

from nerf.core.streams import Random, Stream, derived_seed


def draw(random, stream):
    return torch.rand(64, generator=random.generator(stream))


def test_no_two_streams_share_a_number():
    # An alias of an enumeration does not count as a member of its own.
    assert len(Stream.__members__) == len({int(stream) for stream in Stream.__members__.values()})


def test_no_two_streams_draw_the_same_numbers():
    drawn = torch.stack([draw(Random(5), stream) for stream in Stream])
    assert len(drawn.unique(dim=0)) == len(Stream)
    correlation = torch.corrcoef(drawn) - torch.eye(len(Stream))
    assert correlation.abs().max() < 0.6  # 5 standard errors of 64 draws


def test_the_same_stream_of_the_same_seed_draws_the_same_numbers():
    assert torch.equal(draw(Random(5), Stream.CAMERAS), draw(Random(5), Stream.CAMERAS))
    assert not torch.equal(draw(Random(5), Stream.CAMERAS), draw(Random(6), Stream.CAMERAS))


@pytest.mark.parametrize("other", [(8, 3, "photos"), (7, 4, "photos"), (7, 3, "guided"), (7, 3)])
def test_a_seed_depends_on_every_part_of_its_path(other):
    assert derived_seed(7, 3, "photos") == derived_seed(7, 3, "photos") != derived_seed(*other)


def test_seeds_fit_a_generator():
    assert all(0 <= derived_seed(seed, 0) < 2**62 for seed in range(200))
