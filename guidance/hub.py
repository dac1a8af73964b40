"""Downloads from the Hugging Face hub: what a repository holds, resuming, checksums, and errors in one sentence.

Large files are downloaded here, into the place that huggingface_hub gives them in its cache: a part of a file is kept when a
download ends early, whatever ended it, and the next one goes on from there (huggingface_hub itself keeps whole files only). A
file is moved into place when its SHA-256 is the one that the hub gives. Everything else is left to huggingface_hub.
"""

import errno
import hashlib
import os
import re
import shutil
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TypeVar

from nerf.core.errors import UserError
from nerf.core.files import reason_of

T = TypeVar("T")

SECONDS = 10.0  # that the hub may take to answer a question
RESUMABLE = 1 << 23  # bytes from which a file is downloaded here
MARGIN = 1 << 28  # bytes that are left free on the disk
CHUNK = 1 << 22
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_SHA256, _GIT = re.compile("[0-9a-f]{64}"), re.compile("[0-9a-f]{40}")  # the names of files in the cache


@dataclass(frozen=True)
class Listed:
    """A file of a repository."""

    size: int | None = None  # bytes, if the hub says it
    sha256: str = ""  # of the content; the hub gives that of large files


@dataclass(frozen=True)
class Repository:
    """What the hub says of a repository at one revision."""

    name: str  # owner/name
    revision: str | None  # as it was asked for; None: the main branch
    commit: str  # that it stands for
    files: Mapping[str, Listed]

    def chosen(self, patterns: Iterable[str]) -> dict[str, Listed]:
        """The files that match one of some patterns, as huggingface_hub matches them."""
        from huggingface_hub.utils import filter_repo_objects

        return {name: self.files[name] for name in filter_repo_objects(self.files, allow_patterns=list(patterns))}


def repository(hub_id: str, missing: Callable[[Iterable[str]], str | None] = lambda files: None) -> Repository:
    """Ask the hub for the files of a repository.

    Args:
        hub_id: owner/name, with an optional @revision.
        missing: the name of what a folder with these files lacks, None if it is complete.

    Raises:
        Exception: of the network or the hub, in whatever library.
        ValueError: the repository is not complete.
    """
    from huggingface_hub import HfApi

    name, _, revision = hub_id.partition("@")
    info = HfApi().model_info(name, revision=revision or None, files_metadata=True, timeout=SECONDS)
    files = {}
    for file in info.siblings or ():
        lfs = file.lfs
        files[file.rfilename] = Listed(file.size if lfs is None else lfs.size, "" if lfs is None else lfs.sha256)
    lacks = missing(files)
    if lacks is not None:
        raise ValueError(f"the repository lacks {lacks}")
    return Repository(name, revision or None, info.sha or "main", files)


def cache() -> Path:
    """The folder of the Hugging Face cache (HF_HUB_CACHE, HF_HOME)."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def folder_of(name: str) -> Path:
    """The folder of a repository in the cache."""
    return cache() / f"models--{name.replace('/', '--')}"


def hub_id_of(path: Path) -> str:
    """The owner/name of a snapshot in a cache of huggingface_hub; empty for any other folder."""
    if path.parent.name != "snapshots" or not path.parent.parent.name.startswith("models--"):
        return ""
    return path.parent.parent.name.removeprefix("models--").replace("--", "/", 1)


def fetch(repository: Repository, patterns: Iterable[str]) -> Path:
    """Download files of a repository, or what is missing of them; returns the folder.

    Args:
        repository: of :func:`repository`.
        patterns: names or patterns of files.

    Raises:
        UserError: the disk has no room for them, or a file has another SHA-256 than the hub says.
        Exception: of the network, the hub or the disk, in whatever library.
    """
    from huggingface_hub import snapshot_download

    patterns = list(patterns)
    chosen, blobs = repository.chosen(patterns), folder_of(repository.name) / "blobs"
    check_space(blobs, to_download(repository, patterns))
    for name, file in chosen.items():
        if file.sha256 and (file.size or 0) >= RESUMABLE and not (blobs / file.sha256).exists():
            _fetch_large(repository, name, file, blobs / file.sha256)
    return Path(snapshot_download(repository.name, revision=repository.revision, allow_patterns=patterns))


def to_download(repository: Repository, patterns: Iterable[str]) -> int:
    """Bytes of the files that are not in the cache yet, less the parts of them that are."""
    snapshot = folder_of(repository.name) / "snapshots" / repository.commit
    total = 0
    for name, file in repository.chosen(patterns).items():
        blob = folder_of(repository.name) / "blobs" / (file.sha256 or "-")
        if not blob.exists() and not (snapshot / name).exists():
            part = _part(blob)
            total += max(0, (file.size or 0) - (part.stat().st_size if part.exists() else 0))
    return total


def check_space(folder: Path, needed: int) -> None:
    """Refuse a download that the disk has no room for.

    Raises:
        UserError: it has not; the message gives both sizes.
    """
    existing = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if needed and needed + MARGIN > free:
        raise UserError(
            f"weights: {gigabytes(needed)} are to be downloaded to {folder}, and its disk has {gigabytes(free)} free; make "
            "room there, or set HF_HOME to a folder of another disk"
        )


def gigabytes(count: int) -> str:
    """A number of bytes in words, with two digits or more."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def lock_of(name: str, sha256: str) -> Path:
    """The file whose lock a program holds while it downloads a file of a repository."""
    return cache() / ".locks" / folder_of(name).name / f"{sha256}.somnia.lock"


def _part(blob: Path) -> Path:
    """Where the first part of a file is while it is downloaded."""
    return blob.with_name(f"{blob.name}.somnia.incomplete")


def _fetch_large(repository: Repository, name: str, file: Listed, blob: Path) -> None:
    """Download a file into the cache, from where an earlier download ended.

    Raises:
        UserError: another program downloads it, or the content is not what the hub says.
    """
    from filelock import FileLock, Timeout
    from huggingface_hub import hf_hub_url
    from huggingface_hub.file_download import http_get
    from huggingface_hub.utils import build_hf_headers

    part, lock = _part(blob), lock_of(repository.name, file.sha256)
    for folder in (part.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            begun = part.stat().st_size if part.exists() else 0
            if begun > (file.size or 0):
                part.unlink()
                begun = 0
            url = hf_hub_url(repository.name, name, revision=repository.commit)
            with part.open("ab") as out:
                http_get(
                    url, out, resume_size=begun, headers=build_hf_headers(), expected_size=file.size, displayed_filename=name
                )
            if digest(part) != file.sha256:
                part.unlink()
                raise UserError(
                    f"weights: {name} of {repository.name} did not arrive as the hub describes it (another SHA-256); it was "
                    "removed, so run the same command again"
                )
            os.replace(part, blob)
    except Timeout:
        raise UserError(f"weights: another program is downloading {name} of {repository.name}; wait for it") from None


def digest(path: Path, kind: str = "sha256") -> str:
    """The SHA-256 of a file, or with "git" the name that git gives its content."""
    found = hashlib.new("sha256" if kind == "sha256" else "sha1")
    if kind == "git":
        found.update(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as file:
        while data := file.read(CHUNK):
            found.update(data)
    return found.hexdigest()


def remove_damaged(folder: Path) -> tuple[int, list[str]]:
    """Compare the files of a snapshot in the cache with their checksums, which are their names there; remove damaged ones.

    Returns:
        How many were compared, and the names of those that were damaged.
    """
    compared, damaged = 0, []
    for path in sorted(folder.rglob("*")):
        blob = path.resolve()
        kind = "sha256" if _SHA256.fullmatch(blob.name) else "git" if _GIT.fullmatch(blob.name) else ""
        if not path.is_file() or blob.parent.name != "blobs" or not kind:  # a system without links has copies
            continue
        compared += 1
        if digest(blob, kind) != blob.name:
            damaged.append(path.relative_to(folder).as_posix())
            path.unlink()
            blob.unlink()
    return compared, damaged


def download(ids: Iterable[str], one: Callable[[str], T], flag: str = "--hf_key FOLDER") -> T:
    """What the first of several hub ids gives that the hub answers for.

    Args:
        ids: owner/name, with an optional @revision; best first.
        one: downloads what is used of one of them, or asks the hub about it.
        flag: what to give instead, for messages.

    Raises:
        UserError: no mirror could be reached or holds a complete model, or the disk is full.
    """
    if find_spec("huggingface_hub") is None:
        raise UserError(f"downloading weights needs huggingface_hub; pip install diffusers transformers, or give {flag}")
    failures = []
    for hub_id in ids:
        try:
            return one(hub_id)
        except UserError:
            raise
        except Exception as error:  # of the network, the hub, or the disk, in any of their libraries
            if isinstance(error, OSError) and error.errno in DISK_FULL:
                raise UserError(
                    f"weights: the disk of {cache()} is full; make room there, or set HF_HOME to a folder of another disk"
                ) from error
            failures.append(f"{hub_id}: {_failure(error, hub_id)}")
    raise UserError(
        f"weights: nothing could be downloaded ({'; '.join(failures)}); check the network, HF_ENDPOINT and "
        f"HF_TOKEN, or give {flag}"
    )


def download_model(
    ids: Iterable[str], missing: Callable[[Iterable[str]], str | None], wanted: Callable[[list[str]], list[str]], flag: str
) -> Path:
    """Download what is used of the first complete repository among several; returns its folder.

    Args:
        ids, flag: see :func:`download`, which says what is raised, too.
        missing: see :func:`repository`.
        wanted: files of a repository -> those that are used, or patterns.
    """

    def one(hub_id: str) -> Path:
        found = repository(hub_id, missing)
        return fetch(found, wanted(list(found.files)))

    return download(ids, one, flag)


def _failure(error: Exception, hub_id: str) -> str:
    """Why a download failed, in a few words."""
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    if isinstance(error, GatedRepoError):
        page = f"{constants.ENDPOINT}/{hub_id.partition('@')[0]}"
        return f"its licence must be accepted first: do so at {page}, and set HF_TOKEN to a token of that account"
    lines = str(error).strip().splitlines()
    return re.sub(r"^\[Errno -?\d+\] ", "", lines[0]) if lines else reason_of(error)
