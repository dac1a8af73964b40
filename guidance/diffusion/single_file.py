"""Tensors of one checkpoint file (``.ckpt``, ``.pt``, ``.safetensors``), read on demand and without running any of its code.

A ``.ckpt`` of PyTorch Lightning is a zip archive: a pickle that describes a tree of objects, and the bytes of each tensor as
a file of its own. Beside the weights it holds optimiser states, callbacks and settings, as objects of whatever class. Unlike
``torch.load(weights_only=True)``, which refuses such a file, the reader here builds a placeholder in the place of
everything that is no tensor, dictionary or plain value. Nothing that a pickle names is ever imported or called, and the
bytes of a tensor are read when it is asked for, so a file of 15 GB costs the memory of the weights that are used.
"""

import hashlib
import pickle
import struct
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from guidance import folders
from nerf.core.errors import UserError
from nerf.core.files import reading

SAMPLED = 8  # rows of a tensor that its fingerprint reads, evenly spaced, both ends included
MOST_BYTES = 1 << 28  # of the pickle, which describes tensors and does not hold them
_DTYPES = {
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "LongStorage": torch.int64,
    "IntStorage": torch.int32,
    "ShortStorage": torch.int16,
    "CharStorage": torch.int8,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
}
_LOCAL_HEADER = struct.Struct("<4s22xHH")  # of a file in a zip archive: mark, then the lengths of its name and extra field


@dataclass(frozen=True)
class _Storage:
    """The bytes behind one or more tensors: a file of the archive."""

    dtype: torch.dtype
    key: str
    count: int  # elements


@dataclass(frozen=True)
class _Stored:
    """A tensor in the archive."""

    storage: _Storage
    offset: int  # elements
    shape: tuple[int, ...]
    stride: tuple[int, ...]


class _Placeholder:
    """What stands for an object that is no tensor: it accepts everything that a pickle does to an object, and does nothing."""

    def __new__(cls, *_: Any, **__: Any) -> "_Placeholder":
        return super().__new__(cls)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    def append(self, _: Any) -> None:
        """As a list does."""

    def extend(self, _: Any) -> None:
        """As a list does."""

    def add(self, _: Any) -> None:
        """As a set does."""


class _Names(dict[Any, Any]):
    """An OrderedDict whose attributes (``_metadata`` of a state_dict) are dropped."""

    def __setstate__(self, state: Any) -> None:
        pass


def _rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *_: Any) -> Any:
    """What ``torch._utils._rebuild_tensor_v2`` stands for here: a record of where the tensor is."""
    numbers = [offset, *shape, *stride]
    if not isinstance(storage, _Storage) or not all(type(n) is int and n >= 0 for n in numbers) or len(shape) != len(stride):
        return _Placeholder()
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if prod(shape) else 0
    return _Stored(storage, offset, tuple(shape), tuple(stride)) if last < max(storage.count, 1) else _Placeholder()


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    """What ``torch._utils._rebuild_parameter`` stands for here: its tensor."""
    return data


_KNOWN: dict[tuple[str, str], Any] = {
    ("torch._utils", "_rebuild_tensor_v2"): _rebuild_tensor,
    ("torch._utils", "_rebuild_parameter"): _rebuild_parameter,
    ("collections", "OrderedDict"): _Names,
    **{("torch", name): dtype for name, dtype in _DTYPES.items()},
}


class _Unpickler(pickle._Unpickler):  # type: ignore[name-defined, misc]
    """Builds records of tensors, dictionaries and plain values; placeholders for everything else.

    This is the implementation in Python: the one in C allocates whatever memory an index in a damaged file asks for.
    """

    def find_class(self, module: str, name: str) -> Any:
        """Our own stand-in for a name; no name is ever looked up in a module."""
        return _KNOWN.get((module, name), _Placeholder)

    def persistent_load(self, pid: Any) -> Any:
        """A storage: ``("storage", type, key, device, count)``."""
        if not isinstance(pid, tuple) or len(pid) != 5 or not isinstance(pid[1], torch.dtype) or type(pid[4]) is not int:
            return _Placeholder()
        return _Storage(pid[1], str(pid[2]), pid[4])


class TensorFile(Mapping[str, Tensor]):
    """The named tensors of a checkpoint file; a tensor is read each time that it is asked for.

    Args:
        path: a ``.safetensors`` file, or a zip archive of ``torch.save`` (``.ckpt``, ``.pt``, ``.bin``): a dictionary of
            tensors, or one that holds such a dictionary as ``state_dict``, as those of PyTorch Lightning.

    Raises:
        UserError: the file is missing, damaged, of another format or holds no tensors.
    """

    def __init__(self, path: Path | str):
        self.path = Path(path)
        self.metadata: dict[str, str] = {}  # what a .safetensors file says of itself, of whoever wrote it
        if not self.path.is_file():
            raise UserError(f"weights: {self.path} is not a file; give a .ckpt, .pt or .safetensors file that exists")
        with reading(f"weights: {self.path}", folders.RESTORE):
            self._shapes = self._open_safetensors() if self.path.suffix == ".safetensors" else self._open_archive()
        if not self._shapes:
            raise UserError(f"weights: {self.path} holds no tensors by name; {folders.RESTORE}")

    def __len__(self) -> int:
        return len(self._shapes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._shapes)

    def __contains__(self, name: object) -> bool:
        return name in self._shapes

    def shape(self, name: str) -> tuple[int, ...]:
        """The shape of a tensor, without reading it.

        Raises:
            UserError: there is none of that name.
        """
        if name not in self._shapes:
            raise UserError(f"weights: {self.path} lacks the tensor {name}; it is another kind of model, or damaged")
        return self._shapes[name]

    def __getitem__(self, name: str) -> Tensor:
        """A copy of a tensor, in main memory.

        Raises:
            KeyError: there is none of that name.
            UserError: its bytes are missing.
        """
        if name not in self._shapes:
            raise KeyError(name)
        with reading(f"weights: {self.path}", folders.RESTORE):
            return self._read_safetensors(name) if self.path.suffix == ".safetensors" else self._read_archive(name)

    def fingerprint(self, prefix: str) -> str:
        """A hash of the tensors whose names begin with ``prefix``: names, shapes, dtypes, and samples of the values of each.

        It does not depend on where the file is, nor on its other tensors.
        """
        digest = hashlib.sha256()
        with reading(f"weights: {self.path}", folders.RESTORE), self._parts() as part_of:
            for name in sorted(name for name in self if name.startswith(prefix)):
                count = self._shapes[name][0] if self._shapes[name] else 0
                part = part_of(name) if count else None
                rows = sorted({(count - 1) * i // (SAMPLED - 1) for i in range(SAMPLED)})
                values = [self[name]] if part is None else [part[i : i + 1] for i in rows]
                digest.update(repr((name, self._shapes[name], str(values[0].dtype))).encode())
                for value in values:
                    digest.update(value.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    @contextmanager
    def _parts(self) -> Iterator[Callable[[str], Any]]:
        """name -> what reads the rows of a tensor by slices; a file of safetensors is opened once."""
        if self.path.suffix != ".safetensors":
            yield self.__getitem__
            return
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            yield file.get_slice

    # ---- safetensors ----

    def _open_safetensors(self) -> dict[str, tuple[int, ...]]:
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            self.metadata = dict(file.metadata() or {})
            return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a dict)

    def _read_safetensors(self, name: str) -> Tensor:
        from safetensors import safe_open

        with safe_open(self.path, "pt") as file:
            tensor: Tensor = file.get_tensor(name)
            return tensor

    # ---- zip archives of torch.save ----

    def _open_archive(self) -> dict[str, tuple[int, ...]]:
        """Read the pickle and find where in the file each storage begins."""
        if not zipfile.is_zipfile(self.path):
            raise UserError(
                f"weights: {self.path} is no archive of torch.save; expected a .ckpt or .pt file of PyTorch 1.6 or later, or "
                ".safetensors"
            )
        with zipfile.ZipFile(self.path) as archive:
            names = {info.filename: info for info in archive.infolist()}
            pickles = [name for name in names if name.count("/") == 1 and name.endswith("/data.pkl")]
            if len(pickles) != 1 or names[pickles[0]].file_size > MOST_BYTES:
                raise UserError(f"weights: {self.path} holds no pickle of tensors; {folders.RESTORE}")
            root = pickles[0].removesuffix("data.pkl")
            if names.get(f"{root}byteorder") is not None and archive.read(f"{root}byteorder").strip() != b"little":
                raise UserError(f"weights: {self.path} was written on a big-endian machine; give a .safetensors file")
            with archive.open(pickles[0]) as file:
                content = _Unpickler(file).load()
            folder = f"{root}data/"
            self._members = {name.removeprefix(folder): info for name, info in names.items() if name.startswith(folder)}
        tree = content.get("state_dict", content) if isinstance(content, dict) else {}
        found = tree.items() if isinstance(tree, dict) else ()
        self._stored = {name: value for name, value in found if isinstance(name, str) and isinstance(value, _Stored)}
        return {name: stored.shape for name, stored in self._stored.items()}

    def _read_archive(self, name: str) -> Tensor:
        stored = self._stored[name]
        info = self._members[stored.storage.key]
        size = stored.storage.dtype.itemsize
        first, last = stored.offset, stored.offset
        last += sum((n - 1) * step for n, step in zip(stored.shape, stored.stride, strict=True))
        if not prod(stored.shape):
            return torch.empty(stored.shape, dtype=stored.storage.dtype)
        if info.compress_type != zipfile.ZIP_STORED or info.file_size < (last + 1) * size:
            raise ValueError(f"the bytes of {name} are incomplete")
        with self.path.open("rb") as file:  # the lengths in the local header may differ from those in the directory
            file.seek(info.header_offset)
            mark, name_length, extra_length = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            if mark != b"PK\x03\x04":
                raise ValueError(f"the bytes of {name} are not where they should be")
            start = info.header_offset + _LOCAL_HEADER.size + name_length + extra_length
            file.seek(start + first * size)
            data = np.fromfile(file, np.uint8, (last + 1 - first) * size)
        flat = torch.from_numpy(data).view(stored.storage.dtype)
        return flat.as_strided(stored.shape, stored.stride).clone(memory_format=torch.contiguous_format)
