"""Reading the parts of a diffusers folder: networks, noise schedule; and keeping their memory small."""

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import msgspec
import torch
from torch import Tensor, nn

from guidance import folders
from guidance.diffusion import Network
from guidance.distillation import NoiseSchedule
from nerf.core.errors import UserError
from nerf.core.files import read_json, reading
from nerf.core.words import counted

if TYPE_CHECKING:
    from nerf.config.config import Config

log = logging.getLogger("somnia.guidance")

LEAST_NOISED = 0.5  # share of the signal that is left after the first step of a noise schedule; published ones have 0.99
MOST_STEPS = 100_000  # of a noise schedule


class _Schedule(msgspec.Struct):
    """What of a scheduler's config the noise schedule depends on."""

    num_train_timesteps: int = 1000
    prediction_type: Literal["epsilon", "v_prediction", "sample"] = "epsilon"
    beta_schedule: str = "linear"
    trained_betas: list[float] | None = None


def require_diffusers() -> None:
    """Check that the libraries of diffusion models are installed.

    Raises:
        UserError: one of them is not.
    """
    if find_spec("diffusers") is None or find_spec("transformers") is None:
        raise UserError("guidance by a diffusion model needs diffusers and transformers; pip install diffusers transformers")


def weights_dtype(optim: Any, device: torch.device) -> torch.dtype:
    """The dtype of frozen weights under ``--fp16`` (CUDA alone; a CPU is slower in it) or ``--bf16``.

    Args:
        optim: the optimiser group of the options.
        device: of the weights.
    """
    if optim.bf16:
        return torch.bfloat16
    return torch.float16 if optim.fp16 and device.type == "cuda" else torch.float32


def placement(config: "Config", device: torch.device) -> dict[str, Any]:
    """The arguments that every model takes from the options of a run: device, dtype of the weights, and ``--vram_O``."""
    return {"device": device, "dtype": weights_dtype(config.optim, device), "vram_O": config.guidance.vram_O}


@contextmanager
def _quietly() -> Iterator[None]:
    """Hide the progress bar that transformers shows even for the smallest file, and its list of tensors that are not used.

    Those are usual: one half of CLIP, buffers that older versions wrote. What is lacking is checked by :func:`load_part`.
    """
    from transformers.utils import logging as transformers_logging

    enabled, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if enabled:
            transformers_logging.enable_progress_bar()


def load_part(folder: Path, part: str, kind: Any, device: torch.device, dtype: torch.dtype) -> Network:
    """Load one network of a diffusers folder, frozen. Nothing is downloaded, and no pickled code is run.

    Args:
        folder: in diffusers layout.
        part: name of the subfolder; "." for the folder itself.
        kind: class of the network, of diffusers or transformers.
        device: where it will run.
        dtype: of its weights.

    Raises:
        UserError: the files are damaged, of another architecture, lack tensors, or hold NaN; the part is named.
    """
    file = folders.weight_file(folders.files_of(folder), part) or ""
    how = {"variant": "fp16" if ".fp16." in file else None, "use_safetensors": ".bin" not in file}
    with reading(f"weights: {folder / part}", folders.RESTORE, problem=f"cannot be read as {kind.__name__}"), _quietly():
        network, info = kind.from_pretrained(folder / part, dtype=dtype, output_loading_info=True, local_files_only=True, **how)
    missing = sorted(info["missing_keys"])
    if missing:
        raise UserError(
            f"weights: {folder / file} lacks {counted(len(missing), 'tensor')} of {part}, first {missing[0]}; {folders.RESTORE}"
        )
    broken = next((name for name, value in network.named_parameters() if not bool(value.isfinite().all())), None)
    if broken is not None:
        raise UserError(f"weights: {folder / file} holds numbers that are not finite, in {broken}; {folders.RESTORE}")
    return network.requires_grad_(False).eval().to(device)


def load_schedule(folder: Path, device: torch.device, clamp: float | None = None) -> NoiseSchedule:
    """The noise schedule in ``scheduler/``: alphas_cumprod [T] float32 and the prediction type.

    Args:
        folder: in diffusers layout.
        device: of ``alphas_cumprod``.
        clamp: see :class:`NoiseSchedule`.

    Raises:
        UserError: the scheduler's config cannot be read.
    """
    from diffusers import DDPMScheduler

    path = folder / "scheduler" / "scheduler_config.json"
    shape = read_json(path, folders.RESTORE, _Schedule)
    steps = shape.num_train_timesteps
    if not 1 <= steps <= MOST_STEPS or (shape.trained_betas is not None and len(shape.trained_betas) != steps):
        raise UserError(f"weights: {path} gives a schedule of {steps} steps that cannot be; {folders.RESTORE}")
    with reading(f"weights: {path}", folders.RESTORE):
        scheduler = DDPMScheduler.from_pretrained(folder / "scheduler", local_files_only=True)
        signal = scheduler.alphas_cumprod.float()
    if signal.shape != (steps,) or not ((signal >= 0) & (signal <= 1)).all() or signal[0] < LEAST_NOISED:
        raise UserError(f"weights: {path} gives noise levels that are no fractions; {folders.RESTORE}")
    return NoiseSchedule(signal.to(device), scheduler.config.prediction_type, clamp)


def release(device: torch.device) -> None:
    """Give back the memory of networks that are no longer referred to."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()


def compile_network(network: Network, mode: str, device: torch.device) -> None:
    """``--compile_guidance``: let torch.compile make the network's forward pass; it is compiled at the first call.

    Sizes are taken as fixed, so a step of another size compiles again. Not measured on a GPU yet; ``benchmarks/guidance.py``
    does it.

    Args:
        network: frozen; compiled in place, so that its attributes stay.
        mode: "none", or one of torch.compile's.
        device: of the network.

    Raises:
        UserError: a GPU needs Triton, and it is not installed.
    """
    if mode == "none":
        return
    if device.type == "cuda" and find_spec("triton") is None:
        raise UserError("--compile_guidance needs Triton on a GPU; pip install triton, or leave the flag out")
    network.compile(mode=mode, dynamic=False)


def offload(network: Network, device: torch.device) -> None:
    """Keep the weights of a frozen network in main memory and copy each layer's to ``device`` while it runs.

    For a GPU they lie in pinned memory, so that the host does not wait for the copies. Gradients of inputs still flow: autograd
    keeps the weights that it needs on the device. Buffers, which are small, stay there.
    """
    for module in network.modules():
        weights_of = {name: value.detach().to("cpu") for name, value in module.named_parameters(recurse=False)}
        for name, buffer in module.named_buffers(recurse=False):
            module.register_buffer(name, buffer.to(device), persistent=name not in module._non_persistent_buffers_set)
        if not weights_of:
            continue
        if device.type == "cuda":
            weights_of = {name: value.pin_memory() for name, value in weights_of.items()}
        visits = _Visits(weights_of, device)
        visits.leave(module)
        module.register_forward_pre_hook(visits.come)
        module.register_forward_hook(visits.leave, always_call=True)


@dataclass(frozen=True)
class _Visits:
    """The weights of one layer, in main memory, as its forward hooks."""

    weights: dict[str, Tensor]
    device: torch.device

    def come(self, module: nn.Module, *_: Any) -> None:
        """Put copies on the device into the layer."""
        for name, value in self.weights.items():
            setattr(module, name, nn.Parameter(value.to(self.device, non_blocking=True), requires_grad=False))

    def leave(self, module: nn.Module, *_: Any) -> None:
        """Put the ones in main memory back; torch keeps the memory of the copies until the device has used them."""
        for name, value in self.weights.items():
            setattr(module, name, nn.Parameter(value, requires_grad=False))


@contextmanager
def parked(network: Network, device: torch.device) -> Iterator[None]:
    """Keep a network of a GPU in main memory within a ``with`` block; one that is offloaded or on a CPU stays as it is."""
    moved = device.type == "cuda" and all(p.device.type == "cuda" for p in network.parameters())
    if moved:
        network.to("cpu")
        torch.cuda.empty_cache()
    try:
        yield
    finally:
        if moved:
            network.to(device)


def save_memory(networks: Sequence[Network], device: torch.device) -> None:
    """``--vram_O``: move the weights of ``networks`` to main memory, see :func:`offload`."""
    if device.type != "cuda":
        log.info("guidance: --vram_O moves no weights on %s", device)
        return
    for network in networks:
        offload(network, device)
    torch.cuda.empty_cache()
