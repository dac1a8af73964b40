"""Argument checks for public functions: shapes, dtypes and devices; each error message is a sentence."""

import torch
from torch import Tensor

FLOATS = (torch.float32, torch.float64)


class Arguments:
    """The tensor arguments of one call, which must agree in device, floating dtype and the sizes that share a letter.

    Args:
        op: name of the public function, for the messages.
    """

    def __init__(self, op: str) -> None:
        self.op = op
        self.sizes: dict[str, int] = {}
        self._device: tuple[str, torch.device] | None = None  # name and device of the first tensor
        self._dtype: tuple[str, torch.dtype] | None = None  # name and dtype of the first floating tensor

    def floats(self, name: str, value: Tensor, *shape: int | str, half: bool = False) -> Tensor:
        """Check a float32 or float64 tensor; the first one decides the dtype of all. Returns it contiguous.

        With ``half`` it may be float16 as well, which then stands for float32 beside the others.
        """
        self._tensor(name, value)
        effective = torch.float32 if half and value.dtype == torch.float16 else value.dtype
        if effective not in FLOATS:
            raise TypeError(
                f"{self.op}: expected {name} in float32 or float64, got {value.dtype}; compute it outside autocast, "
                "or convert it with .float()"
            )
        first, dtype = self._dtype = self._dtype or (name, effective)
        if effective != dtype:
            raise TypeError(f"{self.op}: {first} is {dtype} but {name} is {value.dtype}; convert one of them")
        return self._shaped(name, value, shape)

    def integers(self, name: str, value: Tensor, dtype: torch.dtype | tuple[torch.dtype, ...], *shape: int | str) -> Tensor:
        """Check an integer tensor of exactly ``dtype``, or one of several. Returns it contiguous."""
        self._tensor(name, value)
        allowed = dtype if isinstance(dtype, tuple) else (dtype,)
        if value.dtype not in allowed:
            raise TypeError(
                f"{self.op}: expected {name} in {' or '.join(map(str, allowed))}, got {value.dtype}; "
                f"convert it with .to({allowed[0]})"
            )
        return self._shaped(name, value, shape)

    def require(self, condition: bool, message: str) -> None:
        """Raise ValueError with the op's name and ``message`` unless ``condition`` holds."""
        if not condition:
            raise ValueError(f"{self.op}: {message}")

    def _tensor(self, name: str, value: Tensor) -> None:
        if not isinstance(value, Tensor):
            raise TypeError(f"{self.op}: expected {name} to be a tensor, got {type(value).__name__}")

    def _shaped(self, name: str, value: Tensor, shape: tuple[int | str, ...]) -> Tensor:
        """Compare with the expected shape (letters are bound by the first tensor that has them) and the device."""
        fits = value.ndim == len(shape)
        for got, expected in zip(value.shape, shape, strict=False):
            fits = fits and got == (self.sizes.setdefault(expected, got) if isinstance(expected, str) else expected)
        if not fits:
            letters = ", ".join(str(s) for s in shape)
            bound = ", ".join(f"{s} = {self.sizes[s]}" for s in shape if isinstance(s, str) and s in self.sizes)
            known = f" with {bound}" if bound and self._device else ""
            raise ValueError(f"{self.op}: expected {name} [{letters}]{known}, got {list(value.shape)}")
        first, device = self._device = self._device or (name, value.device)
        if value.device != device:
            raise ValueError(f"{self.op}: {first} is on {device} but {name} is on {value.device}; move one of them")
        return value.contiguous()
