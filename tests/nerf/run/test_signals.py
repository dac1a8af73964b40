"""The first signal leaves a note, the second Ctrl-C interrupts, and the old handlers come back."""

import os
import signal

import pytest

from nerf.core.errors import Stopped
from nerf.run.signals import StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_note_and_nothing_else(number):
    with StopRequest() as request:
        os.kill(os.getpid(), number)
        assert request.number == number


def test_a_second_ctrl_c_interrupts():
    with pytest.raises(KeyboardInterrupt), StopRequest():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)


def test_the_handlers_of_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopRequest():
        assert signal.getsignal(signal.SIGTERM) is not before
    assert signal.getsignal(signal.SIGTERM) is before


def test_exit_codes_are_those_of_a_shell():
    assert Stopped(signal.SIGINT).exit_code == 130
    assert Stopped(signal.SIGTERM).exit_code == 143
