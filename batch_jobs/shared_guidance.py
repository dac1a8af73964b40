"""Guidance models that stay loaded from one run to the next of a process."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import guidance
from nerf.config.config import GROUPS, OPTIONS, Config
from nerf.config.parser import flag_of, iterate

if TYPE_CHECKING:
    from guidance.base import Guidance, ImageCondition
    from guidance.weights import Resolved

# Options of the guidance group that are read at every stage or step, and not while a model is loaded.
PER_RUN = frozenset(
    "guidance_weights guidance_scale lambda_guidance prior_detail perpneg negative_w front_decay_factor side_decay_factor "
    "angle_front angle_overhead guidance_rescale guidance_weighting guidance_anneal t_range t_anneal t_anneal_low anneal_span "
    "t_schedule debias_gradient csd_negative ism_interval ism_stride sdi_steps sdi_scale sdi_eta".split()
)
# Options of other groups that models are loaded by, or that stay set in the process that has set them.
PER_PROCESS = ("fp16", "bf16", "device", "tf32", "cudnn_benchmark", "backend", "taichi_ray")


def recipe(config: Config, weights: "Mapping[str, Resolved]") -> str:
    """What two runs must have in common to be run by one process with the same loaded models.

    Args:
        config: the options of a plan.
        weights: of its models, by name.
    """
    flags = [flag_of(field) for group, field in iterate(GROUPS) if group == "guidance"]
    values = {flag: config.value(flag) for flag in (*flags, *PER_PROCESS) if flag not in PER_RUN}
    prompted = config.trains and bool(config.prompt.kinds)
    found = {name: (one.kind, one.source, one.version) for name, one in weights.items()}
    return json.dumps([prompted, values, found], sort_keys=True)


class SharedGuidance:
    """Builds the models of one run after another, and loads them once where the runs have the same :func:`recipe`.

    A model that learns (VSD's LoRA) is loaded anew: what it learned belongs to one run.
    """

    def __init__(self) -> None:
        self._recipe = ""
        self._models: list[Guidance] = []
        self.loaded = 0  # times that models were loaded

    def build(
        self, config: Config, device: str, weights: "Mapping[str, Resolved]", images: "Sequence[ImageCondition]"
    ) -> "list[Guidance]":
        """The prepared models of a run; see :func:`guidance.build`."""
        wanted = recipe(config, weights)
        if wanted != self._recipe or any(model.state_dict() for model in self._models):
            self._recipe, self._models = "", []  # first free the memory of the old ones
            self._models = guidance.load(config, device, weights)
            self._recipe = wanted
            self.loaded += 1
        guidance.prepare(self._models, config, images)
        return list(self._models)


assert PER_RUN | set(PER_PROCESS) <= OPTIONS.keys(), "every name is that of a flag"
