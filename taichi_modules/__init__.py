"""The Taichi backend: march, compositing and grid encoding as kernels that need no C++ or CUDA compiler.

``--backend taichi`` takes it for every operation that it has, ``--taichi_ray`` for the rays alone, ``--backbone grid_taichi``
for the grid alone. Each function stands in for a native kernel: the same arguments, the same formulas, the same results up
to rounding; allocations, checks and derivatives are those of the kernel folders. ``runtime`` alone imports Taichi.
"""

from extension import register_kernels
from taichi_modules import composite, grid, march, rays

register_kernels(
    "taichi",
    "raymarching",
    {
        f.__name__: f
        for f in (
            rays.near_far_from_aabb,
            rays.sph_from_ray,
            rays.morton_encode,
            rays.morton_decode,
            rays.packbits,
            march.march_coarsen,
            march.march_count,
            march.march_write,
            composite.composite_forward,
            composite.composite_backward,
            composite.composite_accumulate,
        )
    },
)
register_kernels(
    "taichi",
    "gridencoder",
    {
        f.__name__: f
        for f in (
            grid.grid_encode,
            grid.grid_encode_backward,
            grid.grid_second_derivatives,
            grid.grid_contract,
            grid.grid_contract_backward,
            grid.grid_total_variation,
            grid.grid_total_variation_backward,
        )
    },
)
