"""Argument checks: what passes comes back contiguous, what does not is refused with a sentence."""

import pytest
import torch

from extension import Arguments


def test_what_fits_comes_back_contiguous_and_binds_its_letters():
    args = Arguments("op")
    assert args.floats("points", torch.zeros(3, 4).T, "N", 3).is_contiguous()
    assert args.integers("index", torch.zeros(4, dtype=torch.int64), (torch.int32, torch.int64), "N").shape == (4,)
    assert args.sizes == {"N": 4}


def test_a_half_precision_tensor_stands_for_single_precision_where_it_is_allowed():
    args = Arguments("op")
    args.floats("table", torch.zeros(2).half(), "E", half=True)
    assert args.floats("points", torch.zeros(4), "N").dtype == torch.float32
    with pytest.raises(TypeError, match="b is torch.float64"):
        args.floats("b", torch.zeros(2).double(), "E")


@pytest.mark.parametrize(
    "check, error, sentence",
    [
        (lambda a: a.floats("b", [1.0], "N"), TypeError, "op: expected b to be a tensor, got list"),
        (lambda a: a.floats("b", torch.zeros(5), "N"), ValueError, r"op: expected b \[N\] with N = 4, got \[5\]"),
        (lambda a: a.floats("b", torch.zeros(4, 2), "N"), ValueError, r"op: expected b \[N\] with N = 4, got \[4, 2\]"),
        (lambda a: a.floats("b", torch.zeros(4).half(), "N"), TypeError, "b in float32 or float64, got torch.float16"),
        (lambda a: a.floats("b", torch.zeros(4).double(), "N"), TypeError, "a is torch.float32 but b is torch.float64"),
        (lambda a: a.floats("b", torch.zeros(4, device="meta"), "N"), ValueError, "i is on cpu but b is on meta"),
        (lambda a: a.floats("b", torch.zeros(4).bfloat16(), "N", half=True), TypeError, "got torch.bfloat16"),
        (lambda a: a.integers("b", torch.zeros(4), torch.int32, "N"), TypeError, "b in torch.int32, got torch.float32"),
        (lambda a: a.require(False, "b must be c"), ValueError, "op: b must be c"),
    ],
)
def test_what_does_not_fit_is_refused_with_the_first_argument_it_contradicts(check, error, sentence):
    args = Arguments("op")
    args.integers("i", torch.zeros(4, dtype=torch.int32), torch.int32, "N")
    args.floats("a", torch.zeros(4), "N")
    with pytest.raises(error, match=sentence):
        check(args)
