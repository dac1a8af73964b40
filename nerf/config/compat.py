"""Flags of stable-dreamfusion that have no counterpart here: refused ones are read, so that the message can say why."""

from dataclasses import dataclass
from typing import Any

from nerf.config.parser import Kind
from nerf.config.typed import Flag
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


def read_only_flags() -> dict[str, Flag]:
    """The flags of :data:`REFUSED` and :data:`IGNORED`, by name."""
    refused = {flag: Flag(Kind(type(refused.default), None, False)) for flag, refused in REFUSED.items()}
    return refused | {flag: Flag(Kind(str, None, False)) for flag in IGNORED}


def without_refused(values: dict[str, Any]) -> dict[str, Any]:
    """The values, by flag, without those of :data:`REFUSED` and :data:`IGNORED`.

    Raises:
        UserError: such a flag has another value than stable-dreamfusion's default, with the reason why it is refused.
    """
    for flag, refused in REFUSED.items():
        if values.get(flag, refused.default) != refused.default:
            raise UserError(f"--{flag} is not supported: {refused.reason}")
    return {flag: value for flag, value in values.items() if flag not in REFUSED and flag not in IGNORED}
