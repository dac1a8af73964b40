"""The backbone without a grid: frequency encoding and residual blocks (NeRF, sec. 5.1; DreamFusion, app. A.2). M points."""

from torch import Tensor, nn
from torch.nn import functional

from nerf.config.groups import FieldConfig
from nerf.core.structs import SceneInfo
from nerf.fields.encoding import make_encoder
from nerf.fields.neural import NetworkField

FREQUENCIES = 12
BLOCKS = 3


class ResidualBlock(nn.Module):
    """``silu(x + norm(W x))`` on features [M, width]."""

    def __init__(self, width: int):
        super().__init__()
        self.linear = nn.Linear(width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """[M, width] -> [M, width]; differentiable twice."""
        return functional.silu(x + self.norm(self.linear(x)))


class VanillaField(NetworkField):
    """Frequency encoding, one linear layer, residual blocks, head.

    Args:
        config: the field options: hidden, and those of :class:`NetworkField`.
        scene: see :class:`NetworkField`.
    """

    def __init__(self, config: FieldConfig, scene: SceneInfo):
        super().__init__(config, scene, config.hidden)
        self.encoder = make_encoder("frequency", input_dim=3, degree=FREQUENCIES)
        self.entry = nn.Linear(self.encoder.output_dim, config.hidden)
        self.blocks = nn.Sequential(*(ResidualBlock(config.hidden) for _ in range(BLOCKS)))

    def trunk(self, positions: Tensor, max_level: float) -> Tensor:
        """Features [M, hidden] at positions [M, 3]; frequencies above ``max_level`` are zero. Differentiable twice."""
        encoded = self.encoder(positions / self.bound, max_level=max_level)
        return self.blocks(functional.silu(self.entry(encoded)))
