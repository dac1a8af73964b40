"""LPIPS (Zhang et al. 2018) with AlexNet in plain torch, where its weights are on this machine; nothing is downloaded.

The weights are two files that other programs put there: AlexNet's of torchvision, and the linear layers inside the package
``lpips``. They are read as tensors alone, never executed. H rows, W columns.
"""

import importlib.util
import os
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

from nerf.core.errors import UserError
from nerf.core.files import reading

ALEXNET = "alexnet-owt-7be5be79.pth"  # torchvision's, in the cache of torch.hub
LAYERS = ((0, 4, 2), (3, 1, 2), (6, 1, 1), (8, 1, 1), (10, 1, 1))  # index, stride and padding of its convolutions
POOLED = (0, 3)  # those after which it takes maxima
SHIFT, SCALE = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)  # of colours in [-1, 1]
SMALLEST = 1e-10
LEAST_SIDE = 31  # pixels, of which its second maximum leaves something
WAY_OUT = "remove it, and let torchvision or the package lpips fetch it again"


def weight_files() -> tuple[Path, Path] | None:
    """The two files, or None where one of them is missing."""
    hub = Path(os.environ.get("TORCH_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache", "torch")).expanduser()
    spec = importlib.util.find_spec("lpips")
    if spec is None or spec.origin is None:
        return None
    files = hub / "hub" / "checkpoints" / ALEXNET, Path(spec.origin).parent / "weights" / "v0.1" / "alex.pth"
    return files if all(path.is_file() for path in files) else None


class Lpips:
    """The distance of two pictures as a network sees it.

    Args:
        convolutions: weight [O, I, k, k] and bias [O] of each of AlexNet's five.
        linear: [1, O, 1, 1] weights of the features behind each.
    """

    def __init__(self, convolutions: list[tuple[Tensor, Tensor]], linear: list[Tensor]):
        self.convolutions, self.linear = convolutions, linear

    @classmethod
    def read(cls, alexnet: Path, linear: Path, device: torch.device | str = "cpu") -> "Lpips":
        """Read both files.

        Raises:
            UserError: one is damaged, or holds something else.
        """
        tensors = []
        for path in (alexnet, linear):
            with reading(path, WAY_OUT):
                tensors.append(torch.load(path, map_location=device, weights_only=True))
        with reading(f"{alexnet} and {linear}", WAY_OUT, problem="are not the weights of LPIPS"):
            convolutions = [
                (tensors[0][f"features.{i}.weight"].float(), tensors[0][f"features.{i}.bias"].float()) for i, *_ in LAYERS
            ]
            weights = [tensors[1][f"lin{k}.model.1.weight"].float() for k in range(len(LAYERS))]
            if any(w.shape != (1, len(c), 1, 1) for w, (c, _) in zip(weights, convolutions, strict=True)):
                raise UserError(f"{linear} does not fit {alexnet}; {WAY_OUT}")
        return cls(convolutions, weights)

    @torch.no_grad()
    def __call__(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS of two pictures [H, W, 3] in [0, 1]: 0 where they are equal. Not differentiable.

        NaN of pictures with a side below ``LEAST_SIDE``, which the network is not made for.
        """
        if min(a.shape[:2]) < LEAST_SIDE:
            return a.new_tensor(torch.nan)
        pair = torch.stack([a, b]).permute(0, 3, 1, 2).float()
        x = (2 * pair - 1 - pair.new_tensor(SHIFT)[:, None, None]) / pair.new_tensor(SCALE)[:, None, None]
        total = pair.new_zeros(())
        for (weight, bias), linear, (index, stride, padding) in zip(self.convolutions, self.linear, LAYERS, strict=True):
            x = functional.relu(functional.conv2d(x, weight.to(x), bias.to(x), stride, padding))
            unit = x / (x.square().sum(1, keepdim=True).sqrt() + SMALLEST)
            total = total + functional.conv2d((unit[:1] - unit[1:]).square(), linear.to(x)).mean()
            if index in POOLED:
                x = functional.max_pool2d(x, 3, 2)
        return total


def find(device: torch.device | str = "cpu") -> Lpips | None:
    """LPIPS with the weights of this machine, None where it has none."""
    files = weight_files()
    return None if files is None else Lpips.read(*files, device)
