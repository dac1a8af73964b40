"""Grid encoding, forward and table gradient, against plain torch and Taichi: python -m benchmarks.gridencoder

Setting: 2^17 random points, 16 levels of 2 features from 16 to 2048, 2^19 rows, smoothstep, float32; other numbers of
points with --sizes, and with --orders rays points as a trainer has them, 64 in a row along each ray. The torch contender
gathers level by level, dense levels without a hash, all eight corners in one index_select, and splits the table once, so
that its gradient is assembled once; it is timed as it is and under torch.compile. The floors are random reads and
additions one by one (a hash's neighbours in x mostly share a cache line, and prefetched rows cost less, so even these
can be beaten). The bar is 8 times the better torch and 8 times Taichi, the aim 15 times.
"""

import argparse
import ctypes
import importlib.util
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from benchmarks import timing
from extension import toolchain
from gridencoder import GridLayout, encode
from nerf.core.script import POINTS, Parser, run

PRIMES = (1, 2654435761 - 2**32, 805459861)  # as int32, whose products wrap round like the hash's


def per_level(x: Tensor, table: Tensor, layout: GridLayout) -> Tensor:
    """The encoding in plain torch: x [M, 3] in [-1, 1], table [E, 2] -> [M, L * 2]."""
    unit = x * 0.5 + 0.5
    corners = torch.tensor([[c & 1, c >> 1 & 1, c >> 2 & 1] for c in range(8)], dtype=torch.int32, device=x.device)
    sizes = [b - a for a, b in zip(layout.first, layout.first[1:], strict=False)]
    outputs = []
    for features, resolution in zip(table.split(sizes), layout.resolutions, strict=True):
        position = (unit * resolution - 0.5).clamp(0, resolution - 1)
        cell = position.to(torch.int32).clamp(max=resolution - 2)
        w = position - cell
        w = w * w * (3 - 2 * w)
        at = cell[:, None] + corners
        if resolution**3 <= len(features):
            row = at[..., 0] + at[..., 1] * resolution + at[..., 2] * resolution**2
        else:
            row = (at[..., 0] ^ at[..., 1] * PRIMES[1] ^ at[..., 2] * PRIMES[2]) & (len(features) - 1)
        weight = torch.where(corners.bool(), w[:, None], 1 - w[:, None]).prod(dim=2)
        gathered = features.index_select(0, row.reshape(-1)).view(-1, 8, 2)
        outputs.append((gathered * weight[..., None]).sum(dim=1))
    return torch.cat(outputs, dim=1)


def taichi_encoding(layout: GridLayout, threads: int, device: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The encoding and its table gradient in Taichi, level by level, the gradient with atomic additions."""
    import taichi as ti

    gpu = torch.device(device).type == "cuda"
    ti.init(arch=ti.cuda if gpu else ti.cpu, cpu_max_num_threads=threads, log_level=ti.ERROR)
    array = ti.types.ndarray

    @ti.func
    def corner_of(x: array(ti.f32, 2), meta: array(ti.i32, 2), n, level, corner):
        resolution, rows = meta[level, 1], meta[level, 2]
        weight = 1.0
        at = ti.Vector([ti.u32(0), ti.u32(0), ti.u32(0)])
        for d in ti.static(range(3)):
            position = ti.math.clamp((x[n, d] * 0.5 + 0.5) * resolution - 0.5, 0.0, resolution - 1.0)
            cell = ti.min(ti.i32(position), resolution - 2)
            w = position - cell
            w = w * w * (3.0 - 2.0 * w)
            upper = (corner >> d) & 1
            weight *= w if upper == 1 else 1.0 - w
            at[d] = ti.u32(cell + upper)
        row = at[0] + at[1] * ti.u32(resolution) + at[2] * ti.u32(resolution * resolution)
        if meta[level, 3] == 0:
            row = (at[0] ^ at[1] * ti.u32(2654435761) ^ at[2] * ti.u32(805459861)) & ti.u32(rows - 1)
        return meta[level, 0] + ti.i32(row), weight

    @ti.kernel
    def forward(x: array(ti.f32, 2), table: array(ti.f32, 2), meta: array(ti.i32, 2), out: array(ti.f32, 2)):
        for i in range(x.shape[0] * meta.shape[0]):
            level, n = i // x.shape[0], i % x.shape[0]
            a, b = 0.0, 0.0
            for corner in ti.static(range(8)):
                row, weight = corner_of(x, meta, n, level, corner)
                a += weight * table[row, 0]
                b += weight * table[row, 1]
            out[n, 2 * level] = a
            out[n, 2 * level + 1] = b

    @ti.kernel
    def backward(x: array(ti.f32, 2), grad: array(ti.f32, 2), meta: array(ti.i32, 2), grad_table: array(ti.f32, 2)):
        for i in range(x.shape[0] * meta.shape[0]):
            level, n = i // x.shape[0], i % x.shape[0]
            for corner in ti.static(range(8)):
                row, weight = corner_of(x, meta, n, level, corner)
                ti.atomic_add(grad_table[row, 0], weight * grad[n, 2 * level])
                ti.atomic_add(grad_table[row, 1], weight * grad[n, 2 * level + 1])

    rows = [(f, r, e - f, int(r**3 <= e - f)) for f, e, r in zip(layout.first, layout.first[1:], layout.resolutions)]  # noqa: B905
    meta = torch.tensor(rows, dtype=torch.int32, device=device)

    def run(x: Tensor, table: Tensor, grad: Tensor) -> Tensor:
        out, grad_table = torch.empty(len(x), layout.output_dim, device=device), torch.zeros_like(table)
        forward(x, table.detach(), meta, out)
        backward(x, grad, meta, grad_table)
        return out

    return run


def floors(layout: GridLayout, table: Tensor, points: int) -> dict[str, Callable[[], object]]:
    """The random reads and additions that the encoding must do at least, one thread; empty without a compiler."""
    folder = Path(tempfile.mkdtemp())
    try:
        path, _ = toolchain.compiler("cpu")
        source, output = Path(__file__).with_name("floors.cpp"), folder / "floors.so"
        subprocess.run([path, "-O3", "-fPIC", "-shared", str(source), "-o", str(output)], check=True)
    except (toolchain.BuildError, subprocess.CalledProcessError) as error:
        print(f"no floors: {error}")
        return {}
    native = ctypes.CDLL(str(output))
    first = (ctypes.c_int64 * len(layout.first))(*layout.first)
    rest = (first, ctypes.c_int64(layout.num_levels), ctypes.c_int64(8 * points))
    reads, sums = table.detach().clone(), torch.zeros_like(table)
    return {
        "floor: random reads": lambda: native.random_reads(ctypes.c_void_p(reads.data_ptr()), *rest),
        "floor: random additions": lambda: native.random_additions(ctypes.c_void_p(sums.data_ptr()), *rest),
    }


def points_of(order: str, count: int, device: str) -> Tensor:
    """[count, 3] in [-1, 1]: uniformly random, or 64 in a row along rays with the step of 1024 through the diagonal."""
    if order == "random":
        return 2 * torch.rand(count, 3, device=device) - 1
    rays = -(-count // 64)
    middle, direction = 2 * torch.rand(rays, 1, 3, device=device) - 1, torch.randn(rays, 1, 3, device=device)
    along = torch.arange(-32, 32, device=device)[None, :, None] * (2 * 3**0.5 / 1024)
    points = middle + along * torch.nn.functional.normalize(direction, dim=2)
    return points.clamp(-1, 1).reshape(-1, 3)[:count].contiguous()


def contenders(
    arguments: argparse.Namespace, layout: GridLayout, order: str, count: int
) -> tuple[dict[str, Callable[[], object]], Tensor]:
    """Every contender's forward and table gradient on the same points, checked against ours; and the table."""
    device = arguments.device
    x = points_of(order, count, device)
    table = (1e-1 * torch.randn(layout.rows, layout.level_dim, device=device)).requires_grad_()
    grad = torch.randn(count, layout.output_dim, device=device)

    def step(function: Callable[[], Tensor]) -> Callable[[], tuple[Tensor, Tensor]]:
        def run() -> tuple[Tensor, Tensor]:
            values = function()
            return values.detach(), torch.autograd.grad(values, table, grad)[0]

        return run

    chosen = {"ours": step(lambda: encode(x, table, layout))}
    if not arguments.ours_only:
        chosen["torch"] = step(lambda: per_level(x, table, layout))
    if not arguments.no_compile and not arguments.ours_only:
        compiled = torch.compile(per_level)
        chosen["torch.compile"] = step(lambda: compiled(x, table, layout))
    expected = chosen["ours"]()
    for name, work in chosen.items():
        for got, ours in zip(work(), expected, strict=True):
            torch.testing.assert_close(got, ours, atol=1e-3, rtol=1e-3, msg=lambda m, name=name: f"{name}: {m}")
    if not arguments.ours_only and not importlib.util.find_spec("taichi"):
        print("taichi is not installed: pip install taichi==1.7.4 adds it to the table")
    elif not arguments.ours_only:
        run = taichi_encoding(layout, arguments.threads, device)
        torch.testing.assert_close(run(x, table, grad), expected[0], atol=1e-3, rtol=1e-3)
        chosen["taichi"] = lambda: run(x, table, grad)
    chosen["ours, forward"] = lambda: encode(x, table.detach(), layout)
    xg = x.clone().requires_grad_()
    chosen["ours, with position gradient"] = lambda: torch.autograd.grad(encode(xg, table, layout), (table, xg), grad)
    return chosen, table


def compare(arguments: argparse.Namespace, layout: GridLayout, order: str, count: int) -> dict[str, timing.Timing]:
    """Time one set of points and print the results."""
    torch.manual_seed(0)
    chosen, table = contenders(arguments, layout, order, count)
    if torch.device(arguments.device).type == "cpu":
        chosen |= floors(layout, table, count)
    timings = timing.compare(chosen, arguments.rounds, arguments.device)
    print(timing.table(title(order, count), timings, "ours"))
    plain = [timings[name].median for name in ("torch", "torch.compile") if name in timings]
    if plain:
        print(f"  ours against the best plain torch: {min(plain) / timings['ours'].median:.1f}x (bar 8, aim 15)")
    if "taichi" in timings:
        print(f"  ours against Taichi: {timings['taichi'].median / timings['ours'].median:.1f}x (bar 8, aim 15)")
    if "floor: random reads" in timings:
        floor = timings["floor: random reads"].median + timings["floor: random additions"].median
        print(f"  ours reaches {floor / timings['ours'].median:.2f} of the random access floor", flush=True)
    return timings


def title(order: str, count: int) -> str:
    """The heading of one set of results."""
    return f"grid encoding, forward and table gradient, {count} points, {order}"


def main() -> None:
    """Run the comparison for every size and order and print it."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.number("--sizes", int, [2**17], POINTS, "numbers of points", nargs="+")
    parser.add_argument("--orders", nargs="+", choices=["random", "rays"], default=["random"])
    parser.add_argument("--no_compile", action="store_true", help="leave torch.compile out; it builds for a minute")
    parser.add_argument("--ours_only", action="store_true", help="leave torch and Taichi out")
    timing.add_arguments(parser)
    arguments = parser.parse_args()
    timing.prepare(arguments)
    layout = GridLayout()
    timings = {
        title(order, count): compare(arguments, layout, order, count) for order in arguments.orders for count in arguments.sizes
    }
    timing.save(arguments.json, arguments.device, timings)


if __name__ == "__main__":
    sys.exit(run(main))
