"""What every file that the program exports must be: closed, manifold, facing outwards, laid out without overlap."""

from pathlib import Path

from nerf.mesh.report import MeshReport, report_file

OVERLAP = 1e-3  # of the covered texels: slivers of a chart may fold over their neighbours by a texel


def assert_sound(files: dict[str, Path], crossings: float = 0.0) -> dict[str, MeshReport]:
    """Measure the mesh files among ``files`` as another program would find them, and hold them to the above.

    Args:
        files: as in ``ExportReport.files``.
        crossings: fraction of the sampled triangles that may cross another one.
    """
    reports = {name: report_file(path, samples=1000) for name, path in files.items() if name in ("obj", "glb", "ply")}
    for name, report in reports.items():
        said = f"{name}: {report}"
        assert report.watertight and report.openings == 0, said
        assert report.edges_manifold and report.vertices_manifold, said
        assert report.volume > 0 and report.normals_agreeing > 0.99 and report.flat_faces == 0, said
        assert report.crossing <= crossings * report.sampled, said
        assert report.uv == (name != "ply"), said
        assert not report.uv or report.uv_overlap <= OVERLAP and report.uv_outside == 0, said
    assert len({report.faces for report in reports.values()}) == 1
    return reports
