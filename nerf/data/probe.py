"""What a folder of photographs holds, before they are read."""

from nerf.data.folder import read_folder
from nerf.data.frames import ParsedDataset
from nerf.data.image_store import has_transparency


def marks_object(dataset: ParsedDataset) -> bool:
    """Whether the photographs mark the object, by alpha or by masks of it; judged by the first that is trained on."""
    first = dataset.frames[dataset.splits["train"][0]]
    return first.alpha is not None or has_transparency(first.image)


def shows_object(folder: str, holdout: int) -> bool:
    """:func:`marks_object` of a folder.

    Args:
        folder: value of ``--data``.
        holdout: see :func:`nerf.data.folder.read_folder`.

    Raises:
        UserError: a file is missing, broken or not supported.
    """
    return marks_object(read_folder(folder, holdout))
