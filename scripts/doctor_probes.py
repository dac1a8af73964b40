"""The checks of scripts/doctor.py that import this program or its packages; each runs in a process of its own.

A package that is broken may end or hang its process, and the doctor still reports. A finding is a line of JSON on stdout as
soon as it is known; whatever libraries print goes to stderr.
"""

import importlib
import importlib.metadata
import importlib.util
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TextIO

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

HUB_SECONDS = 5.0
# The name on PyPI -> the module, where they differ.
MODULES = {
    "pillow": "PIL", "scikit-image": "skimage", "fast-simplification": "fast_simplification", "protobuf": "google.protobuf",
    "imageio-ffmpeg": "imageio_ffmpeg", "pytest-timeout": "pytest_timeout", "pytest-xdist": "xdist",
}  # fmt: skip
SHOWN_EXTRAS = ("mesh", "guidance", "matting", "video", "tensorboard", "gui", "web", "taichi", "sfm", "batch", "dev")
_report: TextIO = sys.stdout


def tell(name: str, state: str, text: str, **more: Any) -> None:
    """Report a finding.

    Args:
        name: what it is about.
        state: "ok", "note", "bad" or "begun" (the check goes on; the last of these names what a crash is of).
        text: one sentence.
        more: values for the doctor.
    """
    print(json.dumps({"name": name, "state": state, "text": text, **more}), file=_report, flush=True)


def reason(error: BaseException) -> str:
    """An exception in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


# ---- packages --------------------------------------------------------------------------------------------------------------


def packages() -> None:
    """The packages of pyproject.toml, by group: there, of the right version, and they import."""
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    groups = {"core": project["dependencies"], **{name: extras[name] for name in SHOWN_EXTRAS}}
    for group, lines in groups.items():
        wrong = [text for text in (wrong_with(line, imports=group != "dev") for line in lines) if text]
        names = [requirement(line)[0] for line in lines]
        state = "ok" if not wrong else "bad" if group == "core" else "note"
        missing = [name for name in names if any(text.startswith(f"{name} ") for text in wrong)]
        tell(f"packages [{group}]", state, "; ".join(wrong) or f"all {len(lines)} there", group=group, missing=missing)
    tell("ffmpeg", *ffmpeg())


def requirement(line: str) -> tuple[str, str]:
    """Name and version bounds of a requirement, without its extras."""
    found = re.match(r"([A-Za-z0-9._-]+)(?:\[[^]]*\])?", line)
    return (found[1], line[found.end() :]) if found else (line, "")


def wrong_with(line: str, imports: bool = True) -> str:
    """What is wrong with an installed package, or an empty text; ``imports``: try that as well, which may take seconds."""
    name, bounds = requirement(line)
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return f"{name} is missing"
    if not satisfies(version, bounds):
        return f"{name} {version} is not {bounds}"
    if not imports:
        return ""
    tell(f"packages: {name}", "begun", "")
    try:
        importlib.import_module(MODULES.get(name, name))
    except BaseException as error:
        return f"{name} {version} does not import ({reason(error)})"
    return ""


def satisfies(version: str, bounds: str) -> bool:
    """Whether a version is within bounds such as ">=4.4,<6"; numbers alone are compared."""

    def numbers(text: str) -> tuple[int, ...]:
        found = tuple(int(part) for part in re.findall(r"\d+", text.split("+")[0])[:3])
        return found + (0,) * (3 - len(found))

    have = numbers(version)
    compare: dict[str, Callable[[tuple[int, ...]], bool]] = {
        ">=": lambda bound: have >= bound,
        "<": lambda bound: have < bound,
        "==": lambda bound: have == bound,
    }
    pairs = re.findall(r"(>=|<|==)\s*([\d.]+)", bounds)
    return all(compare[sign](numbers(bound)) for sign, bound in pairs)


def ffmpeg() -> tuple[str, str]:
    """Whether videos can be written: imageio-ffmpeg's ffmpeg, with H.264."""
    try:
        import imageio_ffmpeg

        path = imageio_ffmpeg.get_ffmpeg_exe()
        done = subprocess.run([path, "-hide_banner", "-encoders"], capture_output=True, text=True, timeout=20, check=False)
    except Exception as error:
        return "note", f"none, so no videos are written ({reason(error)}); pip install imageio-ffmpeg"
    if done.returncode != 0 or "libx264" not in done.stdout:
        return "note", f"{path} has no H.264, so no videos are written; pip install --force-reinstall imageio-ffmpeg"
    return "ok", f"with H.264: {path}"


# ---- torch and kernels -----------------------------------------------------------------------------------------------------


def torch() -> None:
    """torch, the GPUs that it sees, and their memory."""
    tell("torch", "begun", "")
    try:
        import torch as module

        total = float(module.ones(8).cumsum(0)[-1])
    except BaseException as error:
        missing = isinstance(error, ModuleNotFoundError) and error.name == "torch"
        tell("torch", "bad", "missing" if missing else f"broken ({reason(error)})")
        return
    build = f"CUDA {module.version.cuda}" if module.version.cuda else "for CPUs alone"
    tell("torch", "ok" if total == 8 else "bad", f"{module.__version__}, {build}", cuda=module.version.cuda)
    tell("GPU", "begun", "")
    if not module.cuda.is_available():
        tell("GPU", "note", "torch sees none, so everything runs on the CPU", gpus=0)
        return
    for index in range(module.cuda.device_count()):
        free, whole = module.cuda.mem_get_info(index)
        major, minor = module.cuda.get_device_capability(index)
        text = (
            f"{module.cuda.get_device_name(index)}, compute {major}.{minor}, {free / 2**30:.1f} of {whole / 2**30:.1f} GiB free"
        )
        tell(f"GPU {index}" if index else "GPU", "ok", text, gpus=module.cuda.device_count())


def kernels() -> None:
    """The compilers, and the kernels of every backend: built, or whether they can be."""
    import torch as module

    import extension
    from extension.build import built
    from extension.toolchain import compiler

    tell("kernels (torch)", "ok", "the reference in plain PyTorch, several times slower than the others")
    for kind in ("cpu", "cuda"):
        tell(f"kernels ({kind})", "begun", "")
        try:
            path, version = compiler(kind)
            number = re.search(r"release [\d.]+|\d+\.[\d.]+", version)
            found = f"{path}, {number[0] if number else 'version unknown'}"
        except extension.BuildError as error:
            found = str(error)
        have = [folder for folder in extension.KERNEL_FOLDERS if built(folder, kind)]
        whole = len(have) == len(extension.KERNEL_FOLDERS)
        all_of = (
            "all are built" if whole else f"{len(have)} of {len(extension.KERNEL_FOLDERS)} are built, the others on first use"
        )
        gpu = kind == "cpu" or module.cuda.is_available()
        try:
            if gpu:
                backend = next(b for b in extension.registered_backends() if b.name == kind)
                why = backend.unavailable(kind)
            else:
                extension.shared_object("extension", kind)
                why = None
        except extension.BuildError as error:
            why = str(error)
        if why is not None:
            tell(f"kernels ({kind})", "note", f"do not work here: {why}")
        elif gpu:
            tell(f"kernels ({kind})", "ok", f"work; {all_of} ({found})")
        else:
            tell(f"kernels ({kind})", "ok", f"compile, and there is no GPU to run them on; {all_of} ({found})")
    tell("kernels (taichi)", "begun", "")
    device = "cuda" if module.cuda.is_available() else "cpu"
    why = extension.unavailable("taichi", device)
    works = f"work on {device} without a compiler; taken where those above do not work (--backend taichi takes them anyway)"
    tell("kernels (taichi)", "ok" if why is None else "note", works if why is None else f"do not work here: {why}")


# ---- weights ---------------------------------------------------------------------------------------------------------------


def weights() -> None:
    """Which weights are on this machine, for every guidance family and for preprocess_image.py."""
    import guidance
    from guidance import hub, prior
    from nerf.run.published import table

    known = table()
    embedded = {"SD": prior.WEIGHTS, "zero123": prior.VIEW_WEIGHTS, "MVDream": prior.MULTIVIEW_WEIGHTS}
    for family in (*guidance.FAMILIES, ""):
        named = f"weights of {family or 'preprocess_image.py'}"
        tell(named, "begun", "")
        mine = {name: one for name, one in known.items() if one.family == family}
        there = {name for name, one in mine.items() if one.find() is not None}
        here = [mine[name].title for name in mine if name in there]
        if family in embedded and embedded[family].is_dir():
            here.append("the embedded prior")
        absent = [f"{name} ({hub.gigabytes(round(one.gigabytes * 1e9))})" for name, one in mine.items() if name not in there]
        to_fetch = f"; to fetch: {', '.join(absent)}" if absent else ""
        tell(named, "ok" if here else "note", f"{', '.join(here) or 'none here'}{to_fetch}", here=here)


def hub() -> None:
    """Whether the Hugging Face hub answers, within seconds; an offline variable is respected."""
    import urllib.error
    import urllib.request

    offline = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "DIFFUSERS_OFFLINE")
    words = [f"{name}={os.environ[name]}" for name in offline if os.environ.get(name, "").upper() in ("1", "ON", "YES", "TRUE")]
    if words:
        tell(
            "hub", "note", f"not asked: {' '.join(words)} forbids the network, and nothing will be downloaded", reachable=False
        )
        return
    address = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
    if not address.startswith(("http://", "https://")):
        tell("hub", "bad", f"HF_ENDPOINT must begin with http:// or https://, got {address}", reachable=False)
        return
    begun = time.monotonic()
    try:
        request = urllib.request.Request(address, method="HEAD")
        urllib.request.urlopen(request, timeout=HUB_SECONDS).close()
    except urllib.error.HTTPError:
        pass  # it answers
    except Exception as error:
        cause = getattr(error, "reason", error)
        text = f"{address} does not answer ({cause}); weights that are here are used all the same"
        tell("hub", "note", text, reachable=False)
        return
    tell("hub", "ok", f"{address} answers in {time.monotonic() - begun:.1f} s", reachable=True)


# ---- a command -------------------------------------------------------------------------------------------------------------


def command(program: str, *words: str) -> None:
    """Whether a command could run: everything that it checks before it changes anything on disk."""
    tell("command", "begun", "")
    from nerf.core.errors import UserError

    try:
        remote = (main_py if program == "main.py" else preprocess_image)(list(words))
    except UserError as error:
        tell("command", "bad", str(error))
    except ImportError as error:
        tell("command", "bad", f"the package {error.name or error} is missing or broken", missing=True)
    else:
        tell("command", "ok", "", remote=remote)


def main_py(words: list[str]) -> list[dict[str, Any]]:
    """The checks of main.py in its own order; returns the weights that it would download.

    Raises:
        UserError: it would refuse the command.
    """
    import main
    from nerf.mesh.export import require_packages
    from nerf.run import memory, workspace
    from nerf.run.published import table

    asked = main.options.parse(words)
    main.check_names(asked)
    main.device_name(asked)
    workspace.check_writable(asked.output.workspace)
    plan = main.resolve(asked, main.read_disk(asked), main.choose_weights)
    main.check_names(plan.config)
    memory.check_memory(plan.pending, main.prepare_machine(plan.config))
    if plan.config.output.save_mesh:
        require_packages()
    read_inputs(plan)
    if plan.weights:
        from guidance.diffusion.loader import require_diffusers

        require_diffusers()
    sizes = {place: one.gigabytes for one in table().values() for place in one.places}
    return [
        {"title": found.title, "source": found.source, "gigabytes": sizes.get(found.source, 0.0)}
        for found in plan.weights.values()
        if found.remote
    ]


def read_inputs(plan: Any) -> None:
    """Read the pictures and photographs of a run, into main memory.

    Raises:
        UserError: one is missing or damaged.
    """
    from nerf.data.image_prompt import image_prompts
    from nerf.data.posed_images import Photographs

    config = plan.config
    if config.trains and config.prompt.kinds:
        image_prompts(plan.references)
    if config.data.data is not None:
        from nerf.data.sfm import check_pictures

        if config.data.sfm and check_pictures(Path(config.data.data)) is not None:
            return  # their cameras will be found when the run begins
        Photographs.splits_of(config.data.data, config.data, "cpu", config.field.bound)


def preprocess_image(words: list[str]) -> list[dict[str, Any]]:
    """The checks of preprocess_image.py; it downloads nothing.

    Raises:
        UserError: it would refuse the command.
    """
    import preprocess_image as program
    from nerf.core.errors import UserError
    from nerf.data import preprocess

    asked = program.parser().parse_args(words)
    paths = [Path(path).expanduser() for path in asked.paths]
    preprocess.check_outputs(paths, preprocess.Options(asked.size, asked.border_ratio, output=asked.output))
    for path in paths:
        if not path.is_file():
            raise UserError(f"{path} is not a file")
    preprocess.load_tools(asked.matting, asked.matting_layout, asked.depth, asked.normal, asked.device)
    return []


PROBES: dict[str, Callable[..., None]] = {
    "packages": packages, "torch": torch, "kernels": kernels, "weights": weights, "hub": hub, "command": command,
}  # fmt: skip


def main(argv: list[str]) -> int:
    """Run one probe."""
    global _report
    _report = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    PROBES[argv[0]](*argv[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
