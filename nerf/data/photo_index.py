"""Finding the photographs that a list of cameras names without their folder."""

from pathlib import Path

from nerf.core.errors import UserError
from nerf.data.frames import list_pictures

HEAD_BYTES = 4096  # of a file, by which it is recognised


def beginning(path: Path) -> bytes:
    """The first bytes of a file."""
    with path.open("rb") as file:
        return file.read(HEAD_BYTES)


class PhotoIndex:
    """The pictures in a folder and in the folders in it, by name with and without suffix.

    Args:
        folder: of the dataset.
    """

    def __init__(self, folder: Path):
        self._found: dict[str, list[Path]] = {}
        folders = [folder, *sorted(path for path in folder.rglob("*") if path.is_dir() and not path.name.startswith("."))]
        for path in (picture for inside in folders for picture in list_pictures(inside)):
            for name in {path.name.lower(), path.stem.lower()}:
                self._found.setdefault(name, []).append(path)

    def find(self, name: str, where: str) -> Path | None:
        """The picture of that name; the name may have a path before it, and lack its suffix. None if there is none.

        Raises:
            UserError: several pictures have the name.
        """
        plain = name.replace("\\", "/").rpartition("/")[2].strip().lower()
        found = self._found.get(plain) or self._found.get(plain.rpartition(".")[0]) or []
        if len(found) > 1:
            raise UserError(
                f"{where}: {found[0]} and {found[1]} are both called {name}, and which of them is meant is not said; remove one"
            )
        return found[0] if found else None
