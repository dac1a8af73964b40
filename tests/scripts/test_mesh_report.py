"""scripts/mesh_report.py: text, JSON, and a message for a file that is not a mesh."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from nerf.mesh import io as mesh_io
from nerf.mesh import mesh as meshes
from tests.helpers import solids
from tests.helpers.scripts import ROOT, load_script


@pytest.fixture
def main():
    """The script's main."""
    return load_script("mesh_report").main


@pytest.fixture
def ply(tmp_path):
    """A tetrahedron."""
    mesh = solids.tetrahedron()
    mesh = replace(mesh, normals=meshes.vertex_normals(mesh), colors=np.zeros((4, 3), dtype=np.uint8))
    return mesh_io.write_ply(tmp_path / "mesh.ply", mesh)


def test_report_is_readable(main, ply, capsys):
    assert main([str(ply)]) == 0
    output = capsys.readouterr().out
    assert "watertight                 yes" in output and "0 of 4 triangles tested" in output and "1 x 1 x 1" in output


def test_json_is_a_list_with_an_object_per_file(main, ply, capsys):
    assert main([str(ply), str(ply), "--json"]) == 0
    reports = json.loads(capsys.readouterr().out)
    assert [report["volume"] for report in reports] == pytest.approx([1 / 6] * 2) and reports[0]["outward"]


@pytest.mark.parametrize("name", ["none.glb", "rubbish.glb"])
def test_bad_file_gives_a_message_and_exit_code_2(main, tmp_path, capsys, name):
    (tmp_path / "rubbish.glb").write_bytes(b"rubbish")
    assert main([str(tmp_path / name)]) == 2
    output = capsys.readouterr()
    assert output.err.startswith("mesh_report: ") and name in output.err and output.err.count("\n") == 1 and output.out == ""


def test_other_files_are_measured_if_one_cannot_be(main, ply, tmp_path, capsys):
    assert main([str(tmp_path / "none.glb"), str(ply), "--json"]) == 2
    output = capsys.readouterr()
    assert [report["file"] for report in json.loads(output.out)] == ["mesh.ply"] and "none.glb" in output.err


def test_a_negative_number_of_samples_is_refused(main, ply, capsys):
    with pytest.raises(SystemExit, match="2"):
        main([str(ply), "--samples", "-3"])
    assert "--samples must be between 0 and 1e9, got -3" in capsys.readouterr().err


def test_closed_pipe_is_not_an_error(ply):
    words = [sys.executable, str(ROOT / "scripts" / "mesh_report.py"), str(ply)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    process.stdout.close()
    assert process.stderr.read() == b"" and process.wait(timeout=60) == 0


def test_control_characters_of_a_file_do_not_reach_the_terminal(main, tmp_path, capsys):
    path = tmp_path / "a\x1b[2Jb.ply"
    path.write_text("no mesh")
    assert main([str(path)]) == 2
    assert "\x1b" not in capsys.readouterr().err
