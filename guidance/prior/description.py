"""``somnia.json``: how the input of an embedded prior is prepared, and what marks a weights folder as one."""

import json
from dataclasses import dataclass, fields
from pathlib import Path

from nerf.core.errors import UserError

FILE = "somnia.json"


@dataclass(frozen=True)
class Description:
    """The keys of the file that the guidance reads; see ``guidance/prior/__init__.py`` for their meaning."""

    size: int  # side of the images in pixels
    unshuffle: int  # side of the patches that become channels
    camera_dim: int  # length of the camera vector
    ray_channels: int  # channels of the ray map
    guidance_scale: float  # recommended scale of classifier-free guidance


def read(folder: Path) -> Description | None:
    """The description of an embedded prior, None for the folder of any other model.

    Raises:
        UserError: the file is not JSON or lacks a key.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError):
        raise UserError(f"{path} is not valid JSON; restore it from version control") from None
    names = [field.name for field in fields(Description)]
    needed = ("space", *names)
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing or content["space"] != "pixels":
        raise UserError(
            f'{path}: expected "space": "pixels" and the keys {", ".join(needed)}'
            + (f"; {missing[0]} is missing" if missing else f", got space {content['space']!r}")
        )
    for key in names[:-1]:
        if not isinstance(content[key], int) or content[key] <= 0:
            raise UserError(f"{path}: expected {key} as a positive whole number, got {content[key]!r}")
    return Description(**{name: content[name] for name in names})
