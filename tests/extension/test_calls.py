"""Calls into the C interface: what may be passed, and how errors come back."""

import pytest
import torch

import extension


def test_a_tensor_that_is_not_contiguous_is_not_passed_to_a_kernel():
    with pytest.raises(ValueError, match="contiguous"):
        extension.pointer(torch.zeros(4, 4)[:, 1])


def test_a_failing_kernel_is_named_in_the_error():
    def broken_cpu(*arguments):
        return 7

    with pytest.raises(RuntimeError, match="broken_cpu: failed with error 7"):
        extension.call(broken_cpu, 1, 2.0, None)


def test_a_view_at_an_odd_place_is_copied_to_an_aligned_one(device):
    whole = torch.arange(9.0, device=device)
    assert extension.aligned(whole) is whole
    copy = extension.aligned(whole[1:])
    assert copy.data_ptr() % 16 == 0 and torch.equal(copy, whole[1:]) and copy.is_contiguous()
