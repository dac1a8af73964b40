"""The occupancy grid: which cells of the box a ray may skip. C cascades of H^3 cells in Morton order."""

import math

import torch
from torch import Tensor, nn

from nerf.core.coverage import Coverage
from nerf.core.errors import UserError
from nerf.core.transfer import Download, indices_of
from nerf.fields.base import QUERY_CHUNK, Field
from raymarching import morton3D_invert, packbits

# The first updates sample every cell, later ones one cell in STRIDE, in turn, and as many occupied ones.
FULL_UPDATES, STRIDE = 8, 8
# Share of the mean above which a cell is occupied; below 1, so that a field that is uniform is occupied everywhere.
MEAN_SHARE = 0.99
CULLED = -1.0  # alpha of a cell that is never occupied


class OccupancyGrid(nn.Module):
    """An alpha for every cell, the opacity of the shortest march step in it, and a bit field of those above a threshold.

    The threshold is just below the mean over all cells, at most the alpha of ``density_thresh``: early in training, when
    alphas are low, the cells that are denser than most stay occupied, and all cells of a uniform field. Before the first
    update every cell is occupied. Cells that :meth:`cull` excluded have an alpha of -1, which stays, and count nowhere.

    Args:
        bound: half the edge of the box, scene units; cascade c covers [-min(2^c, bound), min(2^c, bound)]^3.
        grid_size: H, a power of two.
        density_thresh: density above which a cell always counts as occupied.
        dt: length of the shortest march step, scene units.

    Buffers (all in the state dict): alpha [C, H^3], bitfield [C * H^3 / 8] uint8, mean [], updates [].

    Raises:
        UserError: grid_size is not a power of two between 8 and 512.
    """

    alpha: Tensor
    bitfield: Tensor
    mean: Tensor
    updates: Tensor

    def __init__(self, bound: float, grid_size: int, density_thresh: float, dt: float):
        super().__init__()
        if grid_size < 8 or grid_size > 512 or grid_size & (grid_size - 1):
            raise UserError(f"--grid_size must be a power of two from 8 to 512, got {grid_size}")
        self.bound, self.grid_size, self.dt = float(bound), grid_size, float(dt)
        self.alpha_thresh = -math.expm1(-density_thresh * dt)
        self.cascades = max(1, 1 + math.ceil(math.log2(bound)))
        cells = grid_size**3
        self.register_buffer("alpha", torch.zeros(self.cascades, cells))
        self.register_buffer("bitfield", torch.full((self.cascades * cells // 8,), 255, dtype=torch.uint8))
        self.register_buffer("mean", torch.zeros(()))
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))
        self._host_updates: int | None = 0  # the buffer's value on the host; None: it has to be read
        self._next_count: Download | None = None  # on a GPU: how many occupied cells the next update chooses from
        self.register_load_state_dict_post_hook(_forget_host_state)

    def extent(self, density: float) -> float:
        """Half the side of the smallest box around the origin that holds the cells in which ``density`` may be reached.

        Cells of a tenth of it count, as a cell remembers what was sampled at some of its points; without any, it is the bound.
        """
        cells = torch.nonzero(self.alpha.view(-1) > -math.expm1(-0.1 * density * self.dt))[:, 0]
        if len(cells) == 0:
            return self.bound
        cascade, middle = torch.div(cells, self.grid_size**3, rounding_mode="floor"), self.positions(cells).abs().amax(dim=1)
        # What is inside the next finer cascade too is known better there.
        own = (cascade == 0) | (middle > torch.exp2(cascade - 1.0))
        half_cell = torch.exp2(cascade.float()).clamp(max=self.bound) / self.grid_size
        reach = torch.where(own, middle + 3.0 * half_cell, 0.0)  # to the end of the cell, and of one beyond it
        return min(self.bound, float(reach.max())) if bool(own.any()) else self.bound

    @property
    def threshold(self) -> float:
        """Alpha above which a cell counts as occupied."""
        return float(self._threshold())

    def _threshold(self) -> Tensor:
        """:attr:`threshold`, on the device."""
        return (MEAN_SHARE * self.mean.double()).clamp(max=self.alpha_thresh).to(self.alpha.dtype)

    @torch.no_grad()
    def update(self, field: Field, generator: torch.Generator) -> None:
        """Sample the field at a random point of some cells, decay their old alphas, and pack the bits.

        Args:
            field: sampled by ``field.occupancy``.
            generator: of the grid's device; places the points within their cells.
        """
        update = int(self.updates) if self._host_updates is None else self._host_updates
        chosen = self._cells(update, None if self._next_count is None else int(self._next_count.result()))
        flat = self.alpha.view(-1)
        for cells in chosen.split(QUERY_CHUNK):
            sampled = field.occupancy(self.positions(cells, generator), self.dt, self._half_diagonal(cells)).to(flat)
            old = flat[cells]
            flat[cells] = torch.where(old == CULLED, old, torch.maximum(field.occupancy_decay * old, sampled))
        kept = self.alpha != CULLED
        self.mean.copy_(torch.where(kept, self.alpha, 0.0).sum() / kept.sum().clamp(min=1))
        self.updates.add_(1)
        above = ~(self.alpha <= self._threshold())  # NaN counts as above, so that a field with NaN shows
        self.bitfield.copy_(packbits(above.to(self.alpha.dtype), 0.5))
        self._host_updates = update + 1
        if self.alpha.device.type == "cuda" and update + 1 >= FULL_UPDATES:
            self._next_count = Download(self._occupied((update + 1) % STRIDE).sum())

    @torch.no_grad()
    def cull(self, coverage: Coverage) -> None:
        """Exclude blocks of 2^3 cells in which nothing can be learned, see :meth:`Coverage.empty`; before the first update."""
        blocks = self.grid_size**3 // 8  # eight consecutive Morton codes are a block
        codes = torch.arange(self.cascades * blocks, device=self.alpha.device)
        cascade = torch.div(codes, blocks, rounding_mode="floor")
        corner = morton3D_invert((codes - cascade * blocks).int()).to(self.alpha.dtype)
        reach = torch.exp2(cascade.to(corner.dtype)).clamp(max=self.bound)
        width = 4.0 * reach / self.grid_size
        middle = (corner + 0.5) * width[:, None] - reach[:, None]
        empty = coverage.empty(middle, 0.5 * math.sqrt(3.0) * width)
        flat = self.alpha.view(-1, 8)
        flat[empty] = CULLED
        self.bitfield.copy_(packbits((self.alpha != CULLED).to(self.alpha.dtype), 0.5))

    def _half_diagonal(self, cells: Tensor) -> Tensor:
        """Half the diagonal [K] of the cells [K] (flat indices), scene units: what a point in a cell stands for, on average."""
        cascade = torch.div(cells, self.grid_size**3, rounding_mode="floor").to(self.alpha.dtype)
        return torch.exp2(cascade).clamp(max=self.bound) * (math.sqrt(3.0) / self.grid_size)

    def _cells(self, update: int, count: int | None = None) -> Tensor:
        """Flat indices [K] of the cells that this update samples; a GPU is waited for where ``count`` is not known.

        Args:
            update: number of the update.
            count: how many cells are occupied and not in turn; None: they are counted.
        """
        total, device = self.alpha.numel(), self.alpha.device
        if update < FULL_UPDATES:
            return torch.arange(total, device=device)
        turn = update % STRIDE
        in_turn = torch.arange(turn, total, STRIDE, device=device)
        mask = self._occupied(turn)
        occupied = indices_of(mask, count)
        every = max(1, math.ceil(len(occupied) / len(in_turn)))
        return torch.cat([in_turn, occupied[update % every :: every]])

    def _occupied(self, turn: int) -> Tensor:
        """Which cells are occupied and not sampled in this turn anyway, bool [C * H^3]."""
        mask = self.alpha.view(-1) > self._threshold()
        mask.view(-1, STRIDE)[:, turn] = False  # C * H^3 is a multiple of STRIDE
        return mask

    def positions(self, cells: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """A point [K, 3] in each of the cells [K] (flat indices): random, or the centre without a generator."""
        per_cascade = self.grid_size**3
        cascade = torch.div(cells, per_cascade, rounding_mode="floor")
        corner = morton3D_invert((cells - cascade * per_cascade).int()).to(self.alpha.dtype)
        if generator is None:
            inside = torch.full_like(corner, 0.5)
        else:
            inside = torch.rand(corner.shape, generator=generator, device=corner.device, dtype=corner.dtype)
        reach = torch.exp2(cascade.to(corner.dtype)).clamp(max=self.bound)
        return ((corner + inside) * (2.0 / self.grid_size) - 1.0) * reach[:, None]


def _forget_host_state(grid: OccupancyGrid, _keys: object) -> None:
    """After a checkpoint was loaded: what the host remembers belongs to another run."""
    grid._host_updates, grid._next_count = None, None
