"""``pytest -p tests.helpers.missing_packages``: what needs a package that is not installed is skipped, and says so.

An ordinary session fails there instead: a test that does not run should not look like one that passed.
"""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
_MISSING = re.compile(r"ModuleNotFoundError: No module named '(\w+)")


def _missing(text: str) -> str | None:
    """The package of others that a failure is about, if it is about one and that is not there."""
    found = _MISSING.search(text)
    if found is None or any((ROOT / name).exists() for name in (found[1], f"{found[1]}.py")):
        return None
    return found[1] if importlib.util.find_spec(found[1]) is None else None


def _skip(report, package: str, path: Path) -> None:
    """Turn a failure into a skip."""
    report.outcome, report.longrepr = "skipped", (str(path), 1, f"Skipped: {package} is not installed")


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(collector):
    """A file whose imports need the package."""
    report = yield
    package = _missing(str(report.longrepr)) if report.failed else None
    if package is not None:
        _skip(report, package, collector.path)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that needs it while it runs."""
    report = yield
    if report.failed and call.excinfo is not None and call.excinfo.errisinstance(ModuleNotFoundError):
        package = _missing(f"ModuleNotFoundError: {call.excinfo.value}")
        if package is not None:
            _skip(report, package, item.path)
    return report
