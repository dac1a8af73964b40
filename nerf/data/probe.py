"""What a folder of photographs holds, before they are read."""

from nerf.data.folder import read_folder
from nerf.data.image_store import has_transparency


def shows_object(folder: str, holdout: int) -> bool:
    """Whether the photographs mark the object, by alpha or by masks of it.

    Args:
        folder: value of ``--data``.
        holdout: see :func:`nerf.data.folder.read_folder`.

    Raises:
        UserError: a file is missing, broken or not supported.
    """
    dataset = read_folder(folder, holdout)
    first = dataset.frames[dataset.splits["train"][0]]
    return first.alpha is not None or has_transparency(first.image)
