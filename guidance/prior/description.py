"""``somnia.json``: how the input of an embedded prior is prepared, and what marks a weights folder as one."""

from dataclasses import MISSING, dataclass, fields
from pathlib import Path

from nerf.core.errors import UserError
from nerf.core.files import read_json

FILE = "somnia.json"
LARGEST = 4096  # of each number in it
_RESTORE = "restore it from version control"


@dataclass(frozen=True)
class Description:
    """The keys of the file that the guidance reads; see ``guidance/prior/__init__.py`` for their meaning."""

    size: int  # side of the images in pixels
    unshuffle: int  # side of the patches that become channels
    camera_dim: int  # length of the camera vector
    ray_channels: int  # channels of the ray map
    guidance_scale: float  # recommended scale of classifier-free guidance
    reference_channels: int = 0  # input channels of a packed reference image; absent where the prior reads none


def read(folder: Path) -> Description | None:
    """The description of an embedded prior, None for the folder of any other model.

    Raises:
        UserError: the file is not JSON or lacks a key.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    content = read_json(path, _RESTORE)
    names = [field.name for field in fields(Description) if field.default is MISSING]
    needed = ("space", *names)
    missing = [key for key in needed if not isinstance(content, dict) or key not in content]
    if missing or content["space"] != "pixels":
        raise UserError(
            f'{path}: expected "space": "pixels" and the keys {", ".join(needed)}'
            + (f"; {missing[0]} is missing" if missing else f", got space {content['space']!r:.40}")
        )
    optional = [field.name for field in fields(Description) if field.name in content and field.name not in names]
    for key in (*names[:-1], *optional):
        value = content[key]
        if not isinstance(value, int) or isinstance(value, bool) or not 0 < value <= LARGEST:
            raise UserError(f"{path}: expected {key} as a positive whole number, got {value!r:.40}; {_RESTORE}")
    scale = content["guidance_scale"]
    if not isinstance(scale, int | float) or isinstance(scale, bool) or not 0 <= scale <= LARGEST:
        raise UserError(f"{path}: expected guidance_scale as a number of at least 0, got {scale!r:.40}; {_RESTORE}")
    if content["size"] % content["unshuffle"]:
        raise UserError(f"{path}: expected size as a multiple of unshuffle, got {content['size']}; {_RESTORE}")
    return Description(**{name: content[name] for name in (*names, *optional)})
