"""A low-rank change of a frozen UNet (LoRA) that is trained beside the field, for variational score distillation.

One UNet serves both as the published model and as the trained one: the change is off, and an added camera embedding out of
the way, except inside :meth:`Lora.active`. B views, D numbers of a camera.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from guidance.base import Guidance
from guidance.diffusion import Network
from guidance.diffusion.distiller import distillation_method
from nerf.core.errors import UserError

NAME = "vsd"  # of the adapter inside the UNet
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]  # the attention layers, as in ProlificDreamer
EPS = 1e-8  # of the optimiser: the one for hash tables would follow the noise of entries that hardly change
SEED = 0  # of the initial weights


class Lora:
    """A LoRA on the attention layers of a UNet, float32 whatever the dtype of the UNet.

    A fresh one changes nothing: the output matrices of the LoRA and of the camera embedding are zero.

    Args:
        unet: frozen, on its device.
        rank: of each change.
        camera_dim: D, for a UNet that knows no cameras: an embedding of them is added to that of the timestep. None: the UNet
            takes cameras itself.

    Raises:
        UserError: peft is not installed.
    """

    def __init__(self, unet: Network, rank: int, camera_dim: int | None):
        if find_spec("peft") is None:
            raise UserError("--distillation vsd trains a LoRA and needs peft; pip install peft")
        from diffusers.models.embeddings import TimestepEmbedding
        from peft import LoraConfig

        self.unet, self.camera = unet, None
        with torch.random.fork_rng(devices=[]):  # peft draws from the global random numbers
            unet.add_adapter(LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS, init_lora_weights="gaussian"), NAME)
            if camera_dim is not None:
                width = unet.time_embedding.linear_2.out_features
                self.camera = TimestepEmbedding(camera_dim, width).to(unet.device)
        self.weights = {name: p for name, p in unet.named_parameters() if f".{NAME}." in name}
        if self.camera is not None:
            self.weights |= {f"camera.{name}": p for name, p in self.camera.named_parameters()}
        for p in self.weights.values():
            p.data = p.data.float()
        self.reset()
        self._switch(False)

    def reset(self) -> None:
        """Set the weights to those of a fresh LoRA; the same ones each time."""
        generator = torch.Generator().manual_seed(SEED)
        for name, p in self.weights.items():
            zero = "lora_B" in name or name.startswith("camera.linear_2") or p.ndim < 2
            spread = 0.0 if zero else p.shape[1] ** -0.5
            p.data.copy_(spread * torch.randn(p.shape, generator=generator))

    def _switch(self, on: bool) -> None:
        """Turn the change on or off. peft also stops training what is off, which would lose gradients not yet computed."""
        if on:
            self.unet.enable_adapters()
        else:
            self.unet.disable_adapters()
        if self.camera is not None:
            self.unet.class_embedding = self.camera if on else None
        for p in self.weights.values():
            p.requires_grad_(True)

    @contextmanager
    def active(self) -> Iterator[None]:
        """Within, the UNet is the trained one, and takes D numbers of each camera as ``class_labels``."""
        self._switch(True)
        try:
            yield
        finally:
            self._switch(False)


class LearningGuidance(Guidance):
    """Guidance by a UNet of which a LoRA may be trained beside the field.

    Attributes:
        unet: the network.
        lora: what is trained; None for the methods that train nothing.
    """

    unet: Network
    lora: Lora | None = None
    lora_rate = 1e-4  # learning rate

    def learn(self, options: Any, camera_dim: int | None) -> None:
        """Add a LoRA to the UNet, if the method of the run trains one.

        Args:
            options: the guidance group of the options.
            camera_dim: see :class:`Lora`.

        Raises:
            UserError: peft is missing, or the weights are to be moved off the device.
        """
        if not distillation_method(options.distillation).learns:
            return
        if options.vram_O:
            raise UserError(
                f"--distillation {options.distillation} trains a part of the UNet, which --vram_O would move to main memory; "
                "leave one of them out"
            )
        self.lora, self.lora_rate = Lora(self.unet, options.lora_rank, camera_dim), options.lora_lr

    def begin_stage(self) -> None:
        """What is learned starts anew in each stage, as its field does."""
        if self.lora is not None:
            self.lora.reset()

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """See :meth:`Guidance.param_groups`; the LoRA has a learning rate of its own."""
        if self.lora is None:
            return []
        return [{"params": list(self.lora.weights.values()), "lr": self.lora_rate, "eps": EPS, "weight_decay": 0.0}]

    def state_dict(self) -> dict[str, Tensor]:
        """The weights of the LoRA, if there is one."""
        return {} if self.lora is None else {name: p.detach() for name, p in self.lora.weights.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Restore the LoRA; its names and shapes have been checked."""
        if self.lora is None:
            super().load_state_dict(state)
            return
        for name, p in self.lora.weights.items():
            p.data.copy_(state[name])
