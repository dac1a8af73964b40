"""Copies for which the host does not wait, and the one for which it does."""

import torch

from nerf.core.transfer import Download, read_scalars, upload
from tests.helpers.fake_cuda import waits


def test_a_packed_upload_is_one_copy_and_no_wait():
    with waits.record() as seen:
        upload([torch.ones(3), torch.zeros(2, 2, dtype=torch.int64)], "cuda")
    assert not seen.waits and seen.operations["copy to the device"] == 1


def test_a_download_is_waited_for_once_and_not_at_all_after_a_later_one():
    with waits.record() as seen:
        first, second = Download(torch.ones(3, device="cuda")), Download(torch.zeros(3, device="cuda"))
    assert not seen.waits and not second.arrived
    with waits.record() as seen:
        assert second.result().tolist() == [0.0] * 3 and first.result().tolist() == [1.0] * 3
        second.result()
    assert seen.by_function() == {("Download.result", "event"): 1}


def test_all_scalars_of_a_log_line_are_read_in_one_go():
    with waits.record() as seen:
        read_scalars({name: torch.ones((), device="cuda") for name in "abc"})
    assert seen.by_function() == {("read_scalars", "tolist"): 1}
