"""Flags of stable-dreamfusion that have no counterpart here: refused ones are read, so that the message can say why."""

import argparse
from dataclasses import dataclass
from typing import Any

from nerf.core.errors import UserError


@dataclass(frozen=True)
class Refused:
    """A flag that is not supported."""

    default: float | bool  # in stable-dreamfusion; this value is accepted and ignored
    reason: str


REFUSED: dict[str, Refused] = {
    "dont_override_stuff": Refused(False, "presets never override flags that are typed, so there is nothing to switch off"),
}


# Flags that name what is not needed here; any value is accepted.
IGNORED: dict[str, str] = {"zero123_config": "the shapes of the weights say all that the file says"}


def add_refused(parser: argparse.ArgumentParser) -> None:
    """Let a parser read the flags of :data:`REFUSED` and :data:`IGNORED`."""
    for flag in IGNORED:
        parser.add_argument(f"--{flag}", default=argparse.SUPPRESS)
    for flag, refused in REFUSED.items():
        if isinstance(refused.default, bool):
            parser.add_argument(f"--{flag}", action="store_true", default=argparse.SUPPRESS)
        else:
            parser.add_argument(f"--{flag}", type=float, default=argparse.SUPPRESS)


def without_refused(values: dict[str, Any]) -> dict[str, Any]:
    """The values, by flag, without those of :data:`REFUSED` and :data:`IGNORED`.

    Raises:
        UserError: such a flag has another value than stable-dreamfusion's default, with the reason why it is refused.
    """
    for flag, refused in REFUSED.items():
        if values.get(flag, refused.default) != refused.default:
            raise UserError(f"--{flag} is not supported: {refused.reason}")
    return {flag: value for flag, value in values.items() if flag not in REFUSED and flag not in IGNORED}
