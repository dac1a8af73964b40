"""Rendered shards of the training sets and a tiny prior to train beside, built once."""

import pytest

from guidance.prior import dataset, model, multiview_dataset, view_dataset


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


@pytest.fixture(scope="session")
def shipped(tmp_path_factory):
    """A folder with a tiny prior without further networks, in the place of the shipped one; do not change its files."""
    folder = tmp_path_factory.mktemp("shipped")
    model.save(model.build(tiny=True), folder, {"seed": 7})
    return folder
