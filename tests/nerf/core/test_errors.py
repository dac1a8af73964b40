"""Errors that end a run: a name out of a file can neither break the line nor change the terminal."""

import pytest

from nerf.core.errors import ExportError, UserError


@pytest.mark.parametrize("kind", [UserError, ExportError])
def test_control_characters_are_shown_and_not_obeyed(kind):
    assert str(kind("photograph a\nb\x1b[2J\u202ec\x9b is Würfel 方")) == "photograph a\\nb\\x1b[2J\\u202ec\\x9b is Würfel 方"
    assert str(kind(kind("a\\nb"))) == "a\\nb"
