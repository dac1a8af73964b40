"""torch.autograd.Function with a typed ``apply``, for the type checker; at run time it is torch's own class."""

from typing import TYPE_CHECKING, Any

import torch

__all__ = ["Function"]

if TYPE_CHECKING:

    class Function(torch.autograd.Function):
        """torch.autograd.Function, whose ``apply`` has no annotations in torch."""

        @classmethod
        def apply(cls, *args: Any) -> Any:
            """Run ``forward`` and record the node."""

else:
    Function = torch.autograd.Function
