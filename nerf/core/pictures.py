"""Reading pictures: only the formats named here, recognised by their content, and only up to a size.

The library that decodes pictures knows some forty formats. One of them, PostScript, starts another program on the file,
whatever its name. H rows, W columns.
"""

import errno
import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from nerf.core.errors import UserError
from nerf.core.files import reading

FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")
NAMES = "PNG, JPEG, WebP, BMP or TIFF"
LOSSY = ("JPEG", "MPO", "WEBP")  # formats in which a pixel that was black may be stored as almost black
MAX_PIXELS = 178_956_970  # twice what the library warns of; 512 MiB of colours
EXIF_DETAILS = 0x8769  # the tag under which those of the exposure are
WHITE_16 = 65535  # level of white of 16 bits
_SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")


def is_picture(data: bytes) -> bool:
    """Whether bytes begin as a picture in one of :data:`FORMATS`."""
    return data.startswith(_SIGNATURES) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")


@contextmanager
def open_picture(source: Path | bytes, what: str, hint: str) -> Iterator[Image.Image]:
    """Open a picture; whatever goes wrong with it inside the block is one sentence.

    Args:
        source: a file, or its content.
        what: the picture in words, as the message begins.
        hint: what the user can do; the end of the message.

    Raises:
        UserError: it is in none of :data:`FORMATS`, damaged, or of more than :data:`MAX_PIXELS` pixels.
    """
    too_large = f"{what} cannot be read: it has more than {MAX_PIXELS // 1_000_000} million pixels; {hint}"
    with reading(what, hint):
        stream = io.BytesIO(source) if isinstance(source, bytes) else _opened(source)
        with stream:
            if not is_picture(stream.read(12)):
                raise UserError(f"{what} cannot be read: it is not a picture in one of the formats {NAMES}; {hint}")
            stream.seek(0)
            try:
                with _open_quietly(stream) as image:
                    if image.width * image.height > MAX_PIXELS:
                        raise UserError(too_large)
                    yield image
            except Image.DecompressionBombError:
                raise UserError(too_large) from None
            except UnidentifiedImageError:  # which names the stream
                raise UserError(f"{what} cannot be read: it is damaged; {hint}") from None


def _open_quietly(stream: io.BytesIO | io.BufferedReader) -> Image.Image:
    """An image of one of :data:`FORMATS`, without the library's warning of large ones, which have a limit of their own here."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        return Image.open(stream, formats=FORMATS)


def exif_tags(image: Image.Image, details: bool = False) -> dict[int, Any]:
    """The EXIF tags of an open picture, or with ``details`` those of its exposure; none where they are damaged."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        tags = image.getexif()
        return dict(tags.get_ifd(EXIF_DETAILS) if details else tags)
    return {}


def _opened(path: Path) -> io.BufferedReader:
    """A file that is open for reading; a pipe is refused, as it might never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "it is not a file", str(path))
    return path.open("rb")


def as_mode(image: Image.Image, mode: str) -> Image.Image:
    """A picture in the mode "RGB", "RGBA" or "L" of 8 bits; 16-bit grey is scaled, where the library would clip it.

    Raises:
        ValueError: see :func:`check_levels`.
    """
    check_levels(image)
    if image.mode.startswith("I"):
        return image.convert("I").point(lambda value: value / 257).convert("L").convert(mode)
    return image.convert(mode)


def check_levels(image: Image.Image) -> None:
    """Refuse a picture whose levels have no known white; call it inside :func:`open_picture`, which makes it a sentence.

    Raises:
        ValueError: they are floating-point numbers, or whole numbers of more than 16 bits.
    """
    if image.mode == "F":
        raise ValueError("its levels are floating-point numbers, and pictures of 8 or 16 bits are read")
    if image.mode == "I":  # the library's mode for 32 bits, and in older versions for 16
        low, high = image.getextrema()
        if not 0 <= low <= high <= WHITE_16:  # type: ignore[operator]  # numbers, as there is one band
            raise ValueError(f"its levels are from {low} to {high}, and pictures of 8 or 16 bits are read")


def nonzero(image: Image.Image) -> np.ndarray:
    """The pixels [H, W] bool of a mask that are not black, whatever the mask's white is: 1, 255 or 65535.

    In a lossy format, where black may have become almost black: those of at least half of the largest level.
    """
    lossy = image.format in LOSSY
    plain = image if image.mode in ("1", "L", "I", "I;16", "I;16B", "I;16L", "F") else image.convert("RGB")
    levels = np.asarray(plain)
    levels = levels.max(-1) if levels.ndim == 3 else levels
    return np.asarray(levels >= max(0.5 * float(levels.max(initial=0)), 0.5) if lossy else levels > 0)
