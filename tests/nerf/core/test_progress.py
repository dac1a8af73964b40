"""Tasks begin, advance and end, whatever happens in them."""

import threading

import pytest

from nerf.core import progress
from nerf.core.progress import task, track
from tests.helpers.tasks import listening


class Recorder(list):
    """Everything that a listener is told."""

    def task_begins(self, task):
        self.append(("begins", task.doing, task.total))

    def task_advances(self, task):
        self.append(("advances", task.doing, task.done))

    def task_ends(self, task):
        self.append(("ends", task.doing, task.done))


@pytest.fixture
def told():
    recorder = Recorder()
    progress.listen(recorder)
    yield recorder
    progress.ignore(recorder)


def test_a_tracked_sequence_is_one_task(told):
    assert list(track("ab", "reading")) == ["a", "b"]
    assert told == [("begins", "reading", 2), ("advances", "reading", 1), ("advances", "reading", 2), ("ends", "reading", 2)]


def test_a_task_that_fails_ends(told):
    with pytest.raises(ZeroDivisionError), task("dividing", 1):
        1 / 0  # noqa: B018
    assert told[-1] == ("ends", "dividing", 0)


def test_without_a_listener_nothing_happens(told):
    progress.ignore(told)
    progress.ignore(told)
    assert list(track([1], "reading")) == [1] and told == []


def test_the_helper_of_the_tests_lists_tasks():
    with listening() as tasks:
        list(track("abc", "reading"))
    assert [(one.doing, one.done, one.total) for one in tasks] == [("reading", 3, 3)]


def test_the_loops_of_a_quiet_thread_are_told_to_nobody_and_those_of_others_are(told):
    def work():
        with progress.quiet():
            list(track([1, 2], "rendering a view"))
        list(track([1], "saving"))

    thread = threading.Thread(target=work)
    with progress.quiet():
        pass
    with task("training", 1):
        thread.start()
        thread.join()
    assert [entry[:2] for entry in told if entry[0] == "begins"] == [("begins", "training"), ("begins", "saving")]
