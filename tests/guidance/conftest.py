"""Tiny random models in the real file layouts, built once: Stable Diffusion (new and legacy), the embedded prior."""

import json
import shutil
import string
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

LAYOUT = json.loads((Path(__file__).parent / "layouts" / "stable_diffusion.json").read_text())
WIDTH = 16


@pytest.fixture(scope="session")
def layout():
    """What is known of the published folders, see ``layouts/stable_diffusion.json``."""
    return LAYOUT


@pytest.fixture(autouse=True)
def text_cache_folder(tmp_path_factory, monkeypatch):
    """An empty folder for the text embeddings of each test."""
    folder = tmp_path_factory.mktemp("text")
    monkeypatch.setenv("SOMNIA_TEXT_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Any attempt to use the network fails the test; processes of this machine may talk to each other."""
    import socket

    local, unix = socket.socket.connect, getattr(socket, "AF_UNIX", None)

    def refuse(*args):
        raise AssertionError("a test tried to use the network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda own, to: local(own, to) if own.family == unix else refuse())


@pytest.fixture
def hub_cache(tmp_path, monkeypatch):
    """An empty Hugging Face cache, and no variable that says offline."""
    from huggingface_hub import constants

    from guidance.weights import OFFLINE_VARIABLES

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    for name in OFFLINE_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "hub"


@pytest.fixture
def no_weights(hub_cache, tmp_path, monkeypatch):
    """No weights on this machine, and no network."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)


def put_into_cache(cache, hub_id, source, without=None):
    """A snapshot of ``source`` as huggingface_hub lays it out."""
    repository = cache / ("models--" + hub_id.replace("/", "--"))
    folder = shutil.copytree(source, repository / "snapshots" / "abc123")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc123")
    if without:
        (folder / without).unlink()
    return folder


def pretend_hub(monkeypatch, files, folder):
    """A hub whose repositories hold some files, and whose downloads are one folder.

    Args:
        monkeypatch: of pytest.
        files: their names, or a function of the repository's name.
        folder: what every download returns.

    Returns:
        The downloads that are asked for, as they come: (name, revision, patterns).
    """
    import huggingface_hub

    asked = []

    class Hub:
        """What stands for the client of the hub."""

        def model_info(self, name, revision=None, files_metadata=False, timeout=None):
            names = files(name) if callable(files) else files
            return SimpleNamespace(
                sha=revision, siblings=[SimpleNamespace(rfilename=name, size=1, blob_id="", lfs=None) for name in names]
            )

    def download(name, revision=None, allow_patterns=None):
        asked.append((name, revision, allow_patterns))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "HfApi", Hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    return asked


def write_tokenizer(folder: Path) -> int:
    """A byte-pair tokenizer of single letters, in the files of the published ones; returns its size."""
    folder.mkdir(parents=True, exist_ok=True)
    letters = string.ascii_lowercase + string.digits + ",.!'-"
    tokens = [*letters, *(c + "</w>" for c in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(tokens)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    (folder / "tokenizer_config.json").write_text(json.dumps(LAYOUT["tokenizer_config"]))
    return len(tokens)


def write_stable_diffusion(folder: Path) -> None:
    """Stable Diffusion 2.1's layout and tensor names, every width cut down."""
    from diffusers import AutoencoderKL, UNet2DConditionModel
    from transformers import CLIPTextConfig, CLIPTextModel

    torch.manual_seed(0)
    words = write_tokenizer(folder / "tokenizer")
    narrow = {"block_out_channels": (8, 16, 32, 32), "norm_num_groups": 4}  # widths in the real proportions
    UNet2DConditionModel(
        **LAYOUT["unet"]["both"],
        **narrow,
        use_linear_projection=True,
        attention_head_dim=2,
        sample_size=8,
        cross_attention_dim=WIDTH,
    ).save_pretrained(folder / "unet")
    AutoencoderKL(**LAYOUT["vae"]["config"], **narrow, sample_size=64).save_pretrained(folder / "vae")
    config = CLIPTextConfig(
        vocab_size=words,
        hidden_size=WIDTH,
        intermediate_size=WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=77,
        bos_token_id=words - 2,
        eos_token_id=words - 1,
        pad_token_id=words - 1,
    )
    CLIPTextModel(config).save_pretrained(folder / "text_encoder")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(LAYOUT["scheduler"]))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionPipeline"}))


def as_legacy(folder: Path) -> None:
    """Turn a folder's weights into the pickled files and tensor names of 2022."""
    from safetensors.torch import load_file

    for part in ("unet", "vae", "text_encoder"):
        (path,) = (folder / part).glob("*.safetensors")
        tensors = load_file(path)
        path.unlink()
        if part == "vae":
            for new, old in LAYOUT["vae"]["legacy_names"].items():
                new, old = f"attentions.0.{new}.", f"attentions.0.{old}."
                tensors = {name.replace(new, old): tensor for name, tensor in tensors.items()}
        if part == "text_encoder":
            prefix = LAYOUT["text_encoder"]["legacy_prefix"]
            tensors = {prefix + name.removeprefix(prefix): tensor for name, tensor in tensors.items()}
            tensors[LAYOUT["text_encoder"]["legacy_extra"]] = torch.arange(77)[None]
        stem = "pytorch_model" if part == "text_encoder" else "diffusion_pytorch_model"
        torch.save(tensors, folder / part / f"{stem}.bin")


@pytest.fixture(scope="session")
def sd_folder(tmp_path_factory):
    """A tiny Stable Diffusion; do not change its files."""
    folder = tmp_path_factory.mktemp("weights") / "sd"
    write_stable_diffusion(folder)
    return folder


@pytest.fixture(scope="session")
def prior_folder(tmp_path_factory):
    """A tiny embedded prior with a detail network; do not change its files."""
    from guidance.prior import detail, model

    folder = tmp_path_factory.mktemp("weights") / "prior"
    prior = model.build(tiny=True)
    prior.detail = detail.build(tiny=True)
    torch.nn.init.normal_(prior.detail.conv_out.weight, std=0.1)
    model.save(prior, folder)
    return folder


@pytest.fixture(scope="session")
def knowing_folder(prior_folder, tmp_path_factory):
    """The tiny embedded prior with a geometry network; do not change its files."""
    from guidance.prior import UNSHUFFLE, geometry, model

    folder = tmp_path_factory.mktemp("weights") / "knowing"
    prior = model.load(prior_folder)
    prior.geometry = geometry.from_unet(prior.unet, UNSHUFFLE)
    model.save(prior, folder, half=False)
    return folder


@pytest.fixture(scope="session")
def multiview_changes(prior_folder, tmp_path_factory):
    """What a tiny multi-view prior changes of the tiny embedded prior; do not change its files."""
    from guidance.prior import multiview_model

    folder = tmp_path_factory.mktemp("weights") / "multiview"
    prior = multiview_model.build(prior_folder)
    with torch.no_grad():
        for name, value in multiview_model.changes(prior.unet).items():
            value.add_(0.2 * torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))))
    multiview_model.save(prior, folder)
    return folder


def tiny_folder(name):
    """A fixture of a folder with a tiny random model of ``tests/guidance/tiny.py``; do not change its files."""

    @pytest.fixture(scope="session")
    def folder(tmp_path_factory):
        from tests.guidance import tiny

        path = tmp_path_factory.mktemp("weights") / name
        getattr(tiny, f"write_{name}")(path)
        return path

    return folder


if_folder, sdxl_folder = tiny_folder("deepfloyd_if"), tiny_folder("sdxl")
clip_folder, taesdxl_folder = tiny_folder("clip"), tiny_folder("taesdxl")


@pytest.fixture(scope="session")
def view_prior_folder(tmp_path_factory):
    """A tiny view-conditioned prior; do not change its files."""
    from guidance.prior import view_model

    folder = tmp_path_factory.mktemp("weights") / "view"
    prior = view_model.build(tiny=True)
    torch.nn.init.normal_(prior.unet.conv_in.weight, std=0.05)  # the reference's channels are zero in a new one
    view_model.save(prior, folder)
    return folder


@pytest.fixture(scope="session")
def zero123_file(tmp_path_factory):
    """A tiny checkpoint of Zero123."""
    from tests.guidance.camera_models import tiny_tensors

    path = tmp_path_factory.mktemp("weights") / "zero123-xl.ckpt"
    torch.save({"state_dict": tiny_tensors("zero123")}, path)
    return path


@pytest.fixture(scope="session")
def multiview_folders(tmp_path_factory):
    """Name -> a tiny MVDream or ImageDream; do not change their files."""
    from tests.guidance.camera_models import write_multiview_folder

    return {name: write_multiview_folder(tmp_path_factory.mktemp("weights") / name, name) for name in ("MVDream", "ImageDream")}


@pytest.fixture(scope="session")
def mvdream_folder(multiview_folders):
    return multiview_folders["MVDream"]


@pytest.fixture(scope="session")
def imagedream_folder(multiview_folders):
    return multiview_folders["ImageDream"]


@pytest.fixture
def broken_folder(sd_folder, tmp_path):
    """A copy of the tiny Stable Diffusion to break."""
    return shutil.copytree(sd_folder, tmp_path / "broken")


@pytest.fixture
def legacy_folder(sd_folder, tmp_path):
    """The tiny Stable Diffusion in the files of 2022."""
    folder = shutil.copytree(sd_folder, tmp_path / "legacy")
    as_legacy(folder)
    return folder
