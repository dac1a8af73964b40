"""The options of a run and of each of its stages, once presets have filled what the user does not give."""

from typing import Any

from nerf.config.config import KEPT, Config, with_preset, with_values, with_weak_values
from nerf.config.parser import RUN
from nerf.config.references import references
from nerf.config.stages import STAGE_KINDS, Stage, StageKind
from nerf.core.errors import UserError


def with_presets(config: Config, names: list[str]) -> Config:
    """A copy in which each preset has filled what is not given, later ones over earlier ones."""
    for name in names:
        config = with_preset(config, name)
        if name == "image" and config.prompt.text is None:
            # A distance and a field of view that change together leave the size of the object open.
            fovy = _default_view(config).get("default_fovy", config.camera.default_fovy)
            config = with_weak_values(config, {"fovy_range": (fovy, fovy)})
    return with_weak_values(config, _default_view(config)) if "image" in names else config


def _default_view(config: Config) -> dict[str, Any]:
    """Flag -> value of the default view of a run with image prompts: that of the first of them, where there is one.

    A finished run is shown without its pictures, where they are gone.
    """
    if not config.prompt.has_images:
        return {}
    try:
        first = references(config)[0]
    except UserError:
        if config.trains:
            raise
        return {}
    return {
        "default_polar": first.polar,
        "default_azimuth": first.azimuth,
        "default_radius": first.radius,
        "default_fovy": first.fovy,
    }


def make_stage(config: Config, kind: StageKind) -> Stage:
    """A stage of the run with the options as it sees them: its own presets, and what it derives from other options."""
    config = with_presets_of_stage(config, kind)
    return Stage(kind, with_values(config, kind.derived(config), "preset"))


def with_presets_of_stage(config: Config, kind: StageKind) -> Config:
    """A copy in which the presets of a stage have filled what is not given."""
    return with_presets(config, [name for name, needed in kind.presets if needed is None or needed in config.presets])


def in_its_stage(config: Config, flag: str) -> Any:
    """The value of a flag as the stage sees it that the option belongs to, if it belongs to one."""
    owner = KEPT.get(flag, RUN)
    return (config if owner == RUN else with_presets_of_stage(config, STAGE_KINDS[owner])).value(flag)
