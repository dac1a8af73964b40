"""First aid: what this machine can run, what is missing, and what to type next.

Examples:
  python3 scripts/doctor.py                                        could `make demo` run here?
  python3 scripts/doctor.py -- main.py --text "a lion" -O          could this command?
  python3 scripts/doctor.py -- preprocess_image.py burger.jpg

It runs on any Python, also before anything is installed, needs no network, and changes nothing but the cache of kernels.
The exit code is 0 if the command could run, 1 if not, with the reason in the last lines, and 2 for a mistake in these words.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROBES = Path(__file__).resolve().with_name("doctor_probes.py")
OLDEST, NEWEST = (3, 11), (3, 13)
PROGRAMS = ("main.py", "preprocess_image.py")
# What `make demo` runs.
DEMO = ("main.py", "--text", "a blue house with a red roof", "--workspace", "demo/a_blue_house_with_a_red_roof")
DEMO += ("-O", "--stages", "nerf,dmtet")
SECONDS = {"packages": 240, "torch": 180, "kernels": 600, "weights": 180, "hub": 15, "command": 600}  # that a probe may take
LITTLE = 2 * 10**9  # bytes of free disk below which a notice is made; a run writes less
NOTHING = 50 * 10**6  # below which no run can end well
MARKS = {"ok": "ok  ", "note": "note", "bad": "BAD "}
MAKE_VENV = "make venv"


def main(argv: list[str] | None = None) -> int:
    """Check everything and print it; returns the exit code."""
    words = sys.argv[1:] if argv is None else argv
    own, named = (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    first, _, rest = (__doc__ or "").partition("\n\n")
    shape = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser("doctor.py", "doctor.py [-- COMMAND ...]", first, rest, formatter_class=shape)
    _, unknown = parser.parse_known_args(own)
    if unknown:
        return refuse(f"unexpected word {unknown[0]}; write the command after two dashes: doctor.py -- {shlex.join(unknown)}")
    command = program_of(named) if named else list(DEMO)
    if command[0] not in PROGRAMS:
        return refuse(f"it knows the programs {' and '.join(PROGRAMS)}, got {command[0]}")
    findings = []
    for one in check(command, venv_python() if not named and complete_elsewhere() else Path(sys.executable)):
        findings.append(one)
        if one["name"] != "command":
            print(f"{MARKS[one['state']]}  {one['name']}: {one['text']}", flush=True)
    why, fix = verdict(findings)
    for line in advice(findings) if fix != MAKE_VENV else ():  # which installs everything
        print(f"hint: {line}")
    shown = shlex.join(["python", *command]) if named else "make demo"
    if why:
        print(f"\n{shown}\ncannot run here: {why}\nnext: {fix}")
        return 1
    print(f"\n{shown}\ncould run here.\nnext: {shown}")
    return 0


def refuse(sentence: str) -> int:
    """Print what is wrong with the doctor's own words; returns the exit code."""
    print(f"doctor.py: {sentence}", file=sys.stderr)
    return 2


def program_of(words: list[str]) -> list[str]:
    """A command without the interpreter and the folder of its program; flags alone are main.py's."""
    if Path(words[0]).name.startswith("python"):
        words = words[1:]
    if not words or words[0].startswith("-"):
        return ["main.py", *words]
    return [Path(words[0]).name, *words[1:]]


# ---- the checks ------------------------------------------------------------------------------------------------------------


def check(command: list[str], interpreter: Path):
    """All findings, in the order in which they are shown; the processes of the probes run at once.

    Args:
        command: whose checks are made as well.
        interpreter: that would run it.
    """
    first = python(interpreter)
    yield first
    yield environment()
    with concurrent.futures.ThreadPoolExecutor(max(2, (os.cpu_count() or 2) // 2)) as pool:
        asked = [("hub",), ("packages",), ("torch",), ("kernels",), ("command", *command), ("weights",)]
        results = [pool.submit(probe, interpreter, *words) for words in asked[: 1 if first["state"] == "bad" else None]]
        yield from (nvidia(), memory(), display(), *disks(command))
        for result in results:
            yield from result.result()


def finding(name: str, state: str, text: str, **more: object) -> dict:
    """A finding: its name, "ok", "note" or "bad", a sentence, and values for the verdict."""
    return {"name": name, "state": state, "text": text, **more}


def probe(interpreter: Path, name: str, *words: str) -> list[dict]:
    """Run a check of doctor_probes.py in a process of its own; what ends it early becomes a finding."""
    command = [str(interpreter), str(PROBES), name, *words]
    ended = ""
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=SECONDS[name], check=False, env=quiet()
        )
        output, errors, code = done.stdout, done.stderr, done.returncode
    except subprocess.TimeoutExpired as error:
        output, errors, code = error.stdout or b"", error.stderr or b"", 1
        ended = f"had not ended after {SECONDS[name]} s"
    except OSError as error:
        return [finding(name, "bad", f"could not be checked ({error})")]
    found, begun = [], name
    for line in output.decode(errors="replace").splitlines():
        try:
            one = json.loads(line)
        except ValueError:  # cut in the middle
            continue
        if one["state"] == "begun":
            begun = one["name"]
        else:
            found.append(one)
    if code != 0:
        lines = errors.decode(errors="replace").strip().splitlines()
        ended = ended or (f"ended by signal {-code}" if code < 0 else lines[-1] if lines else f"ended with code {code}")
        if not any(one["name"] == begun for one in found):
            missing = "No module named" in ended
            found.append(finding(begun, "note" if name == "hub" else "bad", f"check stopped: {ended}", missing=missing))
    return found


def quiet() -> dict[str, str]:
    """The environment of a probe: no progress bars, and no lengthy advice."""
    return {**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "TRANSFORMERS_VERBOSITY": "error", "PYTHONWARNINGS": "ignore"}


def python(interpreter: Path) -> dict:
    """The version of the interpreter that runs this; another one was chosen by scripts/setup_venv.py, which checks it."""
    have, span = f"{platform.python_version()}, {sys.executable}", f"{OLDEST[0]}.{OLDEST[1]} to {NEWEST[0]}.{NEWEST[1]}"
    if interpreter != Path(sys.executable):
        return finding("Python", "ok", f"{interpreter}, the project's own, which make demo runs with")
    if OLDEST <= sys.version_info[:2] <= NEWEST:
        return finding("Python", "ok", have)
    return finding("Python", "bad", f"{have}; expected {span}")


def environment() -> dict:
    """Whether this is the project's own environment."""
    own = ROOT / ".venv"
    if Path(sys.prefix).resolve() == own.resolve():
        return finding("environment", "ok", "the project's own .venv")
    if (own / ".complete").exists():
        return finding("environment", "note", f"not the project's .venv, which is complete: {venv_python()} runs in it")
    return finding("environment", "note", f"not the project's .venv, which is not there yet; {MAKE_VENV} makes it")


def venv_python() -> Path:
    """The interpreter of the project's own environment."""
    return ROOT / ".venv" / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def nvidia() -> dict:
    """The driver and its GPUs, whatever torch sees."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return finding("NVIDIA driver", "note", "none (no nvidia-smi)")
    query = [tool, "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, errors="replace", timeout=20, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return finding("NVIDIA driver", "note", f"nvidia-smi does not answer ({error})")
    said = "; ".join((done.stdout or done.stderr).strip().splitlines())
    if done.returncode != 0:
        return finding("NVIDIA driver", "note", f"nvidia-smi fails: {said}")
    return finding("NVIDIA driver", "ok", said, driver=True)


def memory() -> dict:
    """Processors and main memory."""
    cores = f"{os.cpu_count()} cores"
    try:
        whole = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return finding("machine", "ok", f"{platform.machine()}, {cores}")
    state = "ok" if whole >= 4 * 2**30 else "note"
    return finding("machine", state, f"{platform.system()} {platform.machine()}, {cores}, {whole / 2**30:.1f} GiB of memory")


def display() -> dict:
    """Whether a window could be opened."""
    found = [f"{name}={os.environ[name]}" for name in ("DISPLAY", "WAYLAND_DISPLAY") if os.environ.get(name)]
    if os.name == "nt" or sys.platform == "darwin" or found:
        return finding("display", "ok", " ".join(found) or "of the system")
    return finding("display", "note", "none; everything but a window works without one")


def disks(command: list[str]) -> list[dict]:
    """Free space, and whether files can be written, where the program writes."""
    base = os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA") or str(Path.home() / ".cache")
    hub = os.environ.get("HF_HUB_CACHE") or os.path.join(os.environ.get("HF_HOME") or os.path.join(base, "huggingface"), "hub")
    places = {"disk (here)": Path.cwd(), "disk (caches)": Path(base), "disk (weights)": Path(hub).expanduser()}
    places["disk (temporary files)"] = Path(tempfile.gettempdir())
    if "--workspace" in command[:-1]:
        places["disk (workspace)"] = Path(command[command.index("--workspace") + 1]).expanduser()
    return [disk(name, place) for name, place in places.items()]


def disk(name: str, place: Path) -> dict:
    """Free space at a folder, or at the first one above it that exists."""
    there = next((folder for folder in (place.absolute(), *place.absolute().parents) if folder.is_dir()), Path("/"))
    try:
        free = shutil.disk_usage(there).free
    except OSError as error:
        return finding(name, "note", f"{place}: {error.strerror or error}")
    if not os.access(there, os.W_OK | os.X_OK):
        return finding(name, "note", f"{place} cannot be written to, {free / 1e9:.1f} GB free")
    state = "ok" if free >= LITTLE else "note" if free >= NOTHING else "bad"
    return finding(name, state, f"{free / 1e9:.1f} GB free at {place}", free=free)


# ---- what they mean --------------------------------------------------------------------------------------------------------


def advice(findings: list[dict]):
    """What would make more work, where the command itself may run."""
    by_name = {one["name"]: one for one in findings}
    torch = by_name.get("torch", {})
    if by_name["NVIDIA driver"].get("driver") and torch.get("state") == "ok" and by_name.get("GPU", {}).get("gpus") == 0:
        why = "is a build for CPUs; pip install torch from its usual index" if not torch.get("cuda") else "does not use it"
        yield f"there is an NVIDIA GPU, and this torch {why}"
    kernels = by_name.get("kernels (cpu)", {})
    if kernels.get("state") == "note":
        yield "install g++ or clang++ (Debian: apt-get install g++); without it runs are several times slower"
    for one in findings:
        if one.get("group") not in (None, "core") and one.get("missing"):
            yield f"pip install {' '.join(one['missing'])} for {one['name']}"
    if by_name.get("ffmpeg", {}).get("state") == "note":
        yield "pip install imageio-ffmpeg for videos"
    if not any(one.get("here") for one in findings if one["name"] == "weights of preprocess_image.py"):
        yield "python scripts/fetch_weights.py u2netp (5 MB) for preprocess_image.py --matting u2netp"


def verdict(findings: list[dict]) -> tuple[str, str]:
    """Why the command cannot run, and what to type; two empty texts if it could."""
    by_name = {one["name"]: one for one in findings}
    again = shlex.join(["python", *map(str, sys.argv)])
    if by_name["Python"]["state"] == "bad":
        return f"Python {by_name['Python']['text']}", f"make PYTHON=python3.{NEWEST[1]} venv"
    broken = [one for one in findings if one["state"] == "bad" and one["name"] != "command"]
    absent = by_name.get("torch", {}).get("state") == "bad" or any(one.get("group") == "core" for one in broken)
    if absent:
        causes = [one for one in broken if one["name"] == "torch" or one.get("group") == "core"]
        text = "; ".join(f"{one['name']}: {one['text']}" for one in causes)
        return text, f"{venv_python()} {' '.join(again.split()[1:])}" if complete_elsewhere() else MAKE_VENV
    command = by_name.get("command", finding("command", "bad", "it could not be checked"))
    if command["state"] == "bad":
        fix = MAKE_VENV if command.get("missing") else "mend that, and ask again"
        return command["text"], fix
    full = next((one for one in broken if one["name"].startswith("disk")), None)
    if full is not None:
        return f"{full['name']}: {full['text']}", "make room there"
    return downloads(command.get("remote") or [], by_name)


def complete_elsewhere() -> bool:
    """Whether the project's own environment is complete and this is another one."""
    return (ROOT / ".venv" / ".complete").exists() and Path(sys.prefix).resolve() != (ROOT / ".venv").resolve()


def downloads(remote: list[dict], by_name: dict[str, dict]) -> tuple[str, str]:
    """Why weights that the command would download cannot come, and what to type; two empty texts if they can."""
    if not remote:
        return "", ""
    titles = " and ".join(f"{one['title']} ({one['source']})" for one in remote)
    hub = by_name.get("hub", finding("hub", "note", "it was not asked", reachable=False))
    if not hub.get("reachable"):
        return (
            f"it would download {titles}, and the hub cannot be reached: {hub['text']}",
            "copy the Hugging Face cache of a machine that ran scripts/fetch_weights.py, or name a local folder",
        )
    needed = 1e9 * sum(one["gigabytes"] for one in remote)
    place = by_name.get("disk (weights)", {})
    if needed > place.get("free", needed):
        return (
            f"it would download {titles}, {needed / 1e9:.1f} GB, and {place['text']}",
            "set HF_HOME to a folder of another disk",
        )
    return "", ""


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # | head
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.exit(1)
