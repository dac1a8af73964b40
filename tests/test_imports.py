"""Importing what is ours has no side effects, and brings no large package in before it is needed.

Two processes import every module, one that may not see torch and one that has it already; each reports, module by module,
what became of the process.
"""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.test_architecture import PRODUCT, ROOT, files_of

# Packages that take long to import, or that are large, and that only some runs need.
NEVER = (
    "PIL.ImageTk accelerate dearpygui debugpy deodr diffusers embreex fast_simplification imageio imageio_ffmpeg matplotlib "
    "onnxruntime peft pycolmap skimage taichi tensorboard tinycudann torch._dynamo torch.utils.tensorboard "
    "transformers trimesh viser websockets xatlas"
).split()
LIGHT = ("torch", "numpy", "PIL", "scipy", "tqdm")  # forbidden where flags are read
SCIPY = ("nerf.data.grabcut", "nerf.data.preprocess")  # written in scipy, and imported where a picture is cut out
# What reads flags, checks them, or says what is missing: it starts in a tenth of a second, and where torch is not installed.
WITHOUT_TORCH = ["nerf.config", "nerf.core.console", "nerf.core.errors", "nerf.core.files", "nerf.core.interrupt"]
WITHOUT_TORCH += ["nerf.core.progress", "nerf.core.ranges", "nerf.core.script", "nerf.core.words", "nerf.run.signals"]
WITHOUT_TORCH += ["main", "preprocess_image", "somnia", "guidance.weights", "guidance.hub"]
LIGHT_SCRIPTS = ["scripts.doctor", "scripts.fetch_weights", "scripts.guidance_2d", "scripts.mesh_report", "scripts.setup_venv"]

WATCH = """
import atexit, faulthandler, gc, importlib, json, logging, os, random, signal, sys, threading, warnings
names, watched, with_torch = json.loads(sys.argv[1])
sys.path.insert(0, os.getcwd())
import msgspec
if with_torch:
    import filelock, numpy, numpy.random, PIL.Image, safetensors.torch, torch, torch.distributed, tqdm

events = []
def hook(name, arguments):
    if name == "open" and not isinstance(arguments[0], int):
        mode, flags = arguments[1] or "", arguments[2] or 0
        if set(mode) & set("wax+") or flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            events.append(f"wrote {arguments[0]}")
    elif name.startswith(("socket.", "subprocess.", "urllib.", "ctypes.dlopen", "shutil.")) or name in (
        "os.mkdir", "os.remove", "os.rename", "os.system", "os.fork", "os.posix_spawn", "os.chdir", "os.putenv", "os.unsetenv",
        "os.symlink", "os.truncate", "os.chmod", "tempfile.mkstemp", "tempfile.mkdtemp"):
        events.append(f"{name} {arguments}")

def state():
    found = {
        "environment": dict(os.environ),
        "threads": sorted(thread.name for thread in threading.enumerate()),
        "signals": {s.name: str(signal.getsignal(s)) for s in signal.Signals},
        "logging": [str(logging.root.handlers), logging.root.level, logging.root.manager.disable, str(logging.lastResort)],
        "loggers": [name for name, one in logging.root.manager.loggerDict.items() if name.startswith("somnia") and
                    isinstance(one, logging.Logger) and (one.handlers or one.level or not one.propagate or one.disabled)],
        "warnings": str(warnings.filters), "hooks": [str(sys.excepthook), str(threading.excepthook), str(sys.displayhook)],
        "atexit": atexit._ncallbacks(), "folder": os.getcwd(), "meta_path": str(sys.meta_path),
        "path": sorted(set(sys.path) - {os.getcwd()}),
        "random": hash(random.getstate()), "faulthandler": faulthandler.is_enabled(), "recursion": sys.getrecursionlimit(),
        "streams": [id(sys.stdin), id(sys.stdout), id(sys.stderr)], "gc": gc.get_threshold(), "switch": sys.getswitchinterval(),
    }
    if with_torch:
        found |= {
            "torch threads": torch.get_num_threads(), "torch dtype": str(torch.get_default_dtype()),
            "torch random": hash(torch.random.get_rng_state().numpy().tobytes()), "grad": torch.is_grad_enabled(),
            "matmul": torch.get_float32_matmul_precision(), "cudnn": torch.backends.cudnn.benchmark,
            "deterministic": torch.are_deterministic_algorithms_enabled(), "anomaly": torch.is_anomaly_enabled(),
            "numpy random": hash(str(numpy.random.get_state())), "numpy errors": str(numpy.geterr()),
            "pixels": PIL.Image.MAX_IMAGE_PIXELS, "cuda": torch.cuda.is_initialized(),
            "print": str(torch._tensor_str.PRINT_OPTS),
        }
    return found

before, report = state(), {}
sys.addaudithook(hook)
for name in names:
    known = set(sys.modules)
    events.clear()
    importlib.import_module(name)
    now = state()
    here = {"heavy": [w for w in watched if w in sys.modules and w not in known], "events": list(events)}
    here["changed"] = [f"{key}: {before[key]} -> {now[key]}" for key in now if now[key] != before[key]]
    before = now
    if any(here.values()):
        report[name] = here
print(json.dumps(report))
"""


def module_name(path: Path) -> str:
    """Dotted name of a file of the project."""
    return path.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".").removesuffix(".__init__")


def imported(names, watched, with_torch):
    """What importing these modules in their order did, by module; nothing for those that did nothing."""
    command = [sys.executable, "-B", "-c", WATCH, json.dumps([names, watched, with_torch])]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return json.loads(done.stdout)


# Kernels in Taichi are decorated functions: their modules import it, and are imported when the backend is chosen.
FILES = [path for path in PRODUCT if path.parent.name != "taichi_modules"] + files_of("scripts", "examples", "benchmarks")
EVERY = sorted({module_name(path) for path in FILES} - {"setup"})


def belongs(name, places):
    """Whether a module is one of some, or inside one of some packages."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_what_reads_flags_imports_neither_torch_nor_anything_large():
    light = [name for name in EVERY if belongs(name, WITHOUT_TORCH)] + ["guidance", *LIGHT_SCRIPTS]
    assert len(light) > 30
    assert imported(light, [*LIGHT, *NEVER], False) == {}


@pytest.mark.slow
def test_no_import_has_side_effects_or_brings_in_what_few_runs_need():
    assert len(EVERY) > 200
    assert imported([name for name in EVERY if name not in SCIPY], ["scipy", *NEVER], True) == {}
