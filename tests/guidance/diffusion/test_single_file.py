"""Checkpoint files are read without running anything that they name."""

import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch

from guidance.diffusion.single_file import TensorFile
from nerf.core.errors import UserError
from tests.guidance.camera_models import write_lightning


class Malicious:
    """Makes a file as soon as it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


def tensors():
    """Tensors of several dtypes and strides."""
    base = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    return {
        "a.weight": base,
        "a.slice": base[1:3, ::2],
        "a.transposed": base.T,
        "half": base.half(),
        "bfloat": base.bfloat16(),
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "parameter": torch.nn.Parameter(torch.ones(2)),
        "mask": torch.tensor([True, False]),
    }


@pytest.mark.parametrize("lightning", [False, True])
def test_tensors_are_those_that_were_saved(tmp_path, lightning):
    path = tmp_path / "model.ckpt"
    write_lightning(path, tensors()) if lightning else torch.save(tensors(), path)
    file = TensorFile(path)
    assert set(file) == set(tensors())
    for name, tensor in tensors().items():
        assert torch.equal(file[name], tensor) and file[name].dtype == tensor.dtype and file.shape(name) == tuple(tensor.shape)


def test_torch_itself_refuses_such_a_checkpoint(tmp_path):
    with pytest.raises(pickle.UnpicklingError):
        torch.load(write_lightning(tmp_path / "model.ckpt", tensors()), weights_only=True)


def test_a_module_s_state_with_metadata_is_read(tmp_path):
    layer = torch.nn.Sequential(torch.nn.Linear(2, 3))
    torch.save(layer.state_dict(), tmp_path / "model.pt")
    assert torch.equal(TensorFile(tmp_path / "model.pt")["0.weight"], layer[0].weight)


def test_safetensors_are_read(tmp_path):
    from safetensors.torch import save_file

    save_file({"a": torch.ones(2, 3)}, tmp_path / "model.safetensors")
    file = TensorFile(tmp_path / "model.safetensors")
    assert file.shape("a") == (2, 3) and torch.equal(file["a"], torch.ones(2, 3))


@pytest.mark.parametrize("where", ["top", "state_dict", "tensor name", "nested"])
def test_nothing_that_a_pickle_names_is_run(tmp_path, where):
    mark, weights = tmp_path / "it ran", tensors()
    harm = Malicious(f"'{mark}'")
    content = {
        "top": {"state_dict": weights, "other": harm},
        "state_dict": {"state_dict": weights | {"harm": harm}},
        "tensor name": {"state_dict": weights, ("key", harm): 1},
        "nested": {"state_dict": weights, "hooks": [({"deep": [harm]},)]},
    }[where]
    path = tmp_path / "model.ckpt"
    torch.save(content, path)
    with zipfile.ZipFile(path) as archive:
        assert b"system" in archive.read("model/data.pkl")
    file = TensorFile(path)
    assert torch.equal(file["a.weight"], weights["a.weight"]) and "harm" not in file
    assert not mark.exists()
    torch.load(path, weights_only=False)  # the file does run code where nobody prevents it
    assert mark.exists()


@pytest.mark.parametrize(
    "name", ["builtins eval", "torch.serialization load", "torch._utils _rebuild_device_tensor_from_numpy"]
)
def test_a_name_inside_torch_or_python_is_not_called(tmp_path, name):
    path = tmp_path / "model.pt"
    module, function = name.split()
    call = f"c{module}\n{function}\n".encode() + b"(V__import__('os').abort()\ntR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"}Vx\n" + call + b"s.")
    with pytest.raises(UserError, match="no tensors"):
        TensorFile(path)


def test_a_huge_index_in_a_damaged_pickle_takes_no_memory(tmp_path):
    path = tmp_path / "model.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("model/data.pkl", b"}r" + struct.pack("<I", 2**31) + b".")
    with pytest.raises(UserError, match="no tensors"):
        TensorFile(path)


def edited(path, old, new):
    """Replace bytes of the pickle of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    pickled = next(name for name in members if name.endswith("data.pkl"))
    assert old in members[pickled]
    members[pickled] = members[pickled].replace(old, new)
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)


def test_a_tensor_that_reaches_beyond_its_storage_is_left_out(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(200), "b": torch.ones(3)}, path)
    edited(path, b"K\xc8\x85", b"K\xc9\x85")  # the shape (200,) becomes (201,)
    file = TensorFile(path)
    assert list(file) == ["b"]
    with pytest.raises(UserError, match="lacks the tensor a"):
        file.shape("a")


def test_missing_bytes_are_one_sentence(tmp_path):
    path = tmp_path / "model.pt"
    torch.save({"a": torch.ones(200)}, path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data[:100] if "/data/0" in name else data)
    with pytest.raises(UserError, match="incomplete; restore or download it again"):
        TensorFile(path)["a"]


@pytest.mark.parametrize("content", [b"", b"not a zip", b"\x80\x02}.", b"PK\x03\x04broken"])
@pytest.mark.parametrize("suffix", [".ckpt", ".safetensors"])
def test_other_files_are_one_sentence(tmp_path, content, suffix):
    path = tmp_path / f"model{suffix}"
    path.write_bytes(content)
    with pytest.raises(UserError, match="weights: "):
        TensorFile(path)


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="is not a file"):
        TensorFile(tmp_path / "none.ckpt")


def test_damage_anywhere_ends_in_a_value_or_a_sentence(tmp_path):
    path = write_lightning(tmp_path / "model.ckpt", tensors())
    whole, random = path.read_bytes(), np.random.default_rng(0)
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(int(random.integers(1, 6))):
            damaged[int(random.integers(len(damaged)))] = int(random.integers(256))
        path.write_bytes(damaged[: int(random.integers(1, len(damaged) + 1))] if random.random() < 0.2 else damaged)
        try:
            file = TensorFile(path)
            for name in file:
                file[name]
        except UserError:
            pass
