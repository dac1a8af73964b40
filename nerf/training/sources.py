"""Where a step's views come from: the interface, and what a source may ask about the run that it supplies."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from torch import Tensor

from nerf.config.config import Config
from nerf.config.stages import Stage
from nerf.core.streams import Random
from nerf.core.structs import Batch, Part, RenderOutput, SceneInfo, Shard
from nerf.mesh.photo_colors import Photo


@dataclass(frozen=True)
class GuidanceInfo:
    """What planning knows of one guidance."""

    name: str
    spaces: tuple[str, ...] = ("rgb",)  # of image that it accepts
    options: Any = None  # its own record for this stage, see ``Guidance.stage_options``


@dataclass(frozen=True)
class RunInfo:
    """What stays the same through one stage of a run."""

    stage: Stage
    scene: SceneInfo = SceneInfo()
    guidances: tuple[GuidanceInfo, ...] = ()
    transform: Any = None  # [4, 4] from the trained box to the data's own world, or None
    notes: dict[str, str] = field(default_factory=dict)  # what exported files say beside prompt and seed
    shards: tuple[Shard, ...] = (Shard(),)  # of every part, those that this process computes

    @property
    def config(self) -> Config:
        """The options of the stage."""
        return self.stage.config

    @property
    def seed(self) -> int:
        """The seed of everything random; it is drawn before a run begins, where none was given."""
        seed = self.config.runtime.seed
        assert seed is not None, "options are resolved before a run begins, the seed included"
        return seed

    @property
    def spaces(self) -> tuple[str, ...]:
        """The image spaces that every guidance accepts."""
        accepted = [set(guidance.spaces) for guidance in self.guidances]
        return tuple(sorted(set.intersection(*accepted))) if accepted else ("rgb",)

    @cached_property
    def options_of(self) -> dict[str, Any]:
        """Guidance model -> the options as it sees them (``GuidanceConfig.of``), which every step looks at."""
        return {model.name: self.config.guidance.of(model.name) for model in self.guidances}

    def fraction(self, step: int) -> float:
        """Training progress of a step in [0, 1], between ``--exp_start_iter`` and ``--exp_end_iter`` where given."""
        start, end = self.config.span
        return min(max((step - start) / max(end - start, 1), 0.0), 1.0)


class Source(ABC):
    """Supplies views: random cameras, photographs, a picture whose view is known.

    Attributes:
        name: part of the seed of everything that the source draws, and of the names of its parts.
        frames_object: its views show the whole object, so that their mean opacity tells whether it is empty or full.
        linked_views: views of a part that one process must render together, beginning with the first.
    """

    name: str
    frames_object = False
    linked_views = 1

    @abstractmethod
    def plan_part(self, step: int, run: RunInfo, random: Random) -> Part | None:
        """What the source contributes to a step, or None for nothing. A function of its arguments and :meth:`state_dict`.

        Args:
            step: 0-based.
            run: the stage.
            random: of this step and source; also what the part carries.
        """

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups of what the source learns about its views; most learn nothing."""
        return []

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint must hold of the source; nothing for one that learns nothing."""
        return {}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Restore what :meth:`state_dict` returned.

        Raises:
            ValueError: the checkpoint holds a state and this source has none.
        """
        if state:
            raise ValueError(f"{type(self).__name__}: expected an empty state, got {sorted(state)}")

    def photos(self) -> list[Callable[[], Photo]]:
        """What gives the photographs that the object's texture may show, their cameras as they stand by now; most have none."""
        return []

    def results(self) -> dict[str, Any]:
        """What ``result.json`` says of the source, by name."""
        return {}

    @abstractmethod
    def batch(self, part: Part) -> Batch:
        """The rays of a part that this source planned, with whatever is known of their colours."""

    def observe(self, part: Part, out: RenderOutput) -> None:  # noqa: B027
        """Look at what was rendered of a part that this source planned. By default nothing is remembered."""
