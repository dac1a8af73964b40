"""What a folder of photographs holds, before they are read."""

from nerf.data.image_store import has_transparency
from nerf.data.transforms import read_folder


def shows_object(folder: str, holdout: int) -> bool:
    """Whether the photographs mark the object, by alpha or by masks of it.

    Args:
        folder: value of ``--data``.
        holdout: see :func:`nerf.data.transforms.read_folder`.

    Raises:
        UserError: a file is missing, broken or not supported.
    """
    dataset = read_folder(folder, holdout)
    first = dataset.frames[dataset.splits["train"][0]]
    return first.alpha is not None or has_transparency(first.image)
