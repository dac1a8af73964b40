"""What every test shares: one thread, fixed seeds, the devices that exist, and the folder of real data."""

import os
import signal
from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a job of the background, whose programs would ignore Ctrl-C too
    signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose slow tests take longest, the longest first: with --dist loadfile a worker that came to one of them last would keep
# the other waiting. All other files follow in their usual order.
LONGEST = (
    "tests/cuda/test_sessions.py",
    "tests/nerf/viewer/test_web.py",
    "tests/guidance/test_readme_commands.py",
    "tests/scripts/test_batch.py",
    "tests/test_fuzz.py",
    "tests/nerf/test_gui.py",
    "tests/guidance/test_sd_utils.py",
    "tests/test_torchrun.py",
    "tests/test_resume.py",
    "tests/test_streams.py",
    "tests/scripts/test_soak.py",
    "tests/scripts/test_doctor.py",
    "tests/guidance/test_distillation_runs.py",
    "tests/nerf/run/test_gradients.py",
    "tests/guidance/test_distillation_families.py",
)

DEVICES = ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])


def pytest_ignore_collect(collection_path, config):
    """With ``-m slow``, files without a slow test are not even imported: most of the time of collecting is theirs."""
    if config.getoption("markexpr") == "slow" and collection_path.name.startswith("test_") and collection_path.is_file():
        return None if "mark.slow" in collection_path.read_text(encoding="utf-8") else True


def pytest_collection_modifyitems(config, items):
    """A slow test whose file does not say so would be left out above; slow tests begin with those of the longest files."""
    hidden = {
        path for path in {item.path for item in items if item.get_closest_marker("slow")} if "mark.slow" not in path.read_text()
    }
    if hidden:
        raise pytest.UsageError(f"mark.slow must stand in the files of slow tests, and not in {sorted(map(str, hidden))}")
    if config.getoption("markexpr") == "slow":
        if gone := [name for name in LONGEST if not (config.rootpath / name).is_file()]:
            raise pytest.UsageError(f"LONGEST names files that are not there: {gone}")
        rank = {config.rootpath / name: number for number, name in enumerate(LONGEST)}
        items.sort(key=lambda item: rank.get(item.path, len(rank)))


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state and with one thread, whatever ran before it, as a run of main.py."""
    torch.manual_seed(0)
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def own_text_cache(tmp_path_factory):
    """Text embeddings are stored in a folder of the tests, and not in the user's."""
    os.environ["SOMNIA_TEXT_CACHE"] = str(tmp_path_factory.mktemp("text_cache"))


@pytest.fixture(params=DEVICES)
def device(request) -> torch.device:
    """Each device of this machine in turn."""
    return torch.device(request.param)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data named by SOMNIA_TEST_DATA; tests that need it skip without it."""
    folder = os.environ.get("SOMNIA_TEST_DATA", "")
    if not folder:
        pytest.skip("SOMNIA_TEST_DATA is not set; it names the folder with lego, fox and the other real data")
    if not Path(folder).is_dir():
        pytest.skip(f"SOMNIA_TEST_DATA is {folder}, which is not a folder")
    return Path(folder)
