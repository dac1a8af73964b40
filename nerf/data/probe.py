"""What a folder of photographs holds, before they are read."""

from pathlib import Path

from nerf.config.inputs import DataConfig
from nerf.data.folder import check_folder, plain_pictures, read_folder, recognise
from nerf.data.frames import ParsedDataset
from nerf.data.image_store import has_transparency


def marks_object(dataset: ParsedDataset) -> bool:
    """Whether the photographs mark the object, by alpha or by masks of it; judged by the first that is trained on."""
    first = dataset.frames[dataset.splits["train"][0]]
    return first.alpha is not None or has_transparency(first.image)


def shows_object(options: DataConfig) -> bool:
    """:func:`marks_object` of the folder of ``--data``; of plain pictures whose cameras ``--sfm`` will find, by the first one.

    Raises:
        UserError: a file is missing, broken or not supported.
    """
    folder = Path(str(options.data))
    if options.sfm:
        check_folder(folder)
        if recognise(folder) is None:
            _, pictures = plain_pictures(folder)
            return bool(pictures) and has_transparency(pictures[0])
    return marks_object(read_folder(folder, options.holdout))
