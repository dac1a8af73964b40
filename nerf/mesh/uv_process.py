"""The process that runs xatlas for :mod:`nerf.mesh.uv`. T triangles, n new vertices.

xatlas 0.0.11 starts threads for each atlas, and about one atlas in ten thousand waits for ever for a thread that it has not
woken, where other programs use the cores. So one atlas is made, in a process that ends without destroying it, and that can
be ended from outside. The mesh comes through the standard input and the charts leave through the standard output, as npz.
Only numpy, xatlas and the standard library are imported.
"""

import io
import os
import signal
import sys

import numpy as np

MAX_COST = 0.5  # a quarter of xatlas' default: compact charts, whose boundary hardly ever comes near itself


def charts(
    vertices: np.ndarray, faces: np.ndarray, blocks: list[np.ndarray], texture_size: int, padding: int
) -> dict[str, np.ndarray]:
    """Cut each block of triangles into charts, and pack those of all blocks. The atlas stays for as long as the process.

    Args:
        vertices: [V, 3].
        faces: [T, 3].
        blocks: indices of triangles; each triangle is in one.
        texture_size: edge of the texture in texels.
        padding: texels between charts.

    Returns:
        ``weld`` [n], the vertex that each new one is a copy of; ``faces`` [T, 3] of new vertices, -1 where xatlas changed the
        number of triangles; ``uv`` [n, 2] of new vertices; ``textures``, how many of the size are needed.
    """
    import xatlas

    atlas, chart, pack = xatlas.Atlas(), xatlas.ChartOptions(), xatlas.PackOptions()
    _kept.append(atlas)
    chart.max_cost = MAX_COST
    pack.padding, pack.resolution = padding, texture_size
    used_by = []
    for block in blocks:
        used, local = np.unique(faces[block], return_inverse=True)
        atlas.add_mesh(vertices[used].astype(np.float32), local.reshape(-1, 3).astype(np.uint32))
        used_by.append(used)
    atlas.generate(chart, pack)
    flat, welds, uvs, count = np.full(faces.shape, -1), [], [], 0
    for k, (block, used) in enumerate(zip(blocks, used_by, strict=True)):
        source, local, uv = atlas[k]
        if local.shape == (len(block), 3):
            flat[block] = local.astype(np.int64) + count
        welds.append(used[source])
        uvs.append(uv.astype(np.float64))
        count += len(source)
    return {"weld": np.concatenate(welds), "faces": flat, "uv": np.concatenate(uvs), "textures": np.array(atlas.atlas_count)}


_kept: list[object] = []  # atlases that are never destroyed


def main() -> None:
    """Read a mesh, write its charts, and end at once."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the process that asked ends this one
    with np.load(io.BytesIO(sys.stdin.buffer.read()), allow_pickle=False) as mesh:
        blocks = np.split(mesh["order"], np.cumsum(mesh["sizes"])[:-1])
        found = charts(mesh["vertices"], mesh["faces"], blocks, int(mesh["texture_size"]), int(mesh["padding"]))
    out = io.BytesIO()
    np.savez(out, **found)  # type: ignore[arg-type]  # of names that are not those of its own parameters
    sys.stdout.buffer.write(out.getbuffer())
    sys.stdout.flush()
    os._exit(0)


if __name__ == "__main__":
    main()
