"""Rendered shards of the training sets, built once."""

import pytest

from guidance.prior import dataset, multiview_dataset, view_dataset


@pytest.fixture(scope="session")
def shards(tmp_path_factory):
    """A folder with a shard of the text-conditioned prior's training set; do not change its files."""
    folder = tmp_path_factory.mktemp("shards")
    dataset.write_shard(0, folder, 8)
    return folder


@pytest.fixture(scope="session")
def view_shards(tmp_path_factory):
    """A folder with a shard of the view-conditioned prior's training set; do not change its files."""
    folder = tmp_path_factory.mktemp("views")
    view_dataset.write_shard(0, folder, 4)
    return folder


@pytest.fixture(scope="session")
def linked_shards(tmp_path_factory):
    """A folder with a shard of the multi-view prior's training set; do not change its files."""
    folder = tmp_path_factory.mktemp("linked")
    multiview_dataset.write_shard(0, folder, 5)
    return folder
