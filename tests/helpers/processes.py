"""Waiting for what a process does."""

import time


def wait_for(condition, process, seconds=60):
    """Return once a condition holds, while a process runs."""
    end = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[1]
        time.sleep(0.01)
