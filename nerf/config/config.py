"""The options as frozen records: ``parse(argv)`` reads what was asked for, ``with_values`` and ``with_preset`` change copies.

What a run finally uses is decided in ``nerf/config/resolve.py``. Nothing here imports torch.
"""

import dataclasses
import json
import os
import shlex
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import msgspec

from nerf.config.compat import read_only_flags, without_refused
from nerf.config.groups import (
    CameraConfig,
    DmtetConfig,
    FieldConfig,
    GuidanceConfig,
    OptimConfig,
    OutputConfig,
    RenderConfig,
    RuntimeConfig,
    ScheduleConfig,
)
from nerf.config.hallucination import HallucinationConfig
from nerf.config.inputs import DataConfig, PromptConfig
from nerf.config.losses import LossConfig
from nerf.config.mesh import MeshConfig
from nerf.config.parser import (
    Field,
    Group,
    as_given,
    as_words,
    dashed,
    flag_of,
    help_text,
    iterate,
    kind_of,
    with_value_of,
)
from nerf.config.presets import GUIDANCE_OF, MESH_FILE, PAINTED, PRESETS, REASONS
from nerf.config.stages import STAGE_KINDS, Stage
from nerf.config.typed import FILE, HELP, flag_for, read_words, split_file
from nerf.config.viewer import GuiConfig
from nerf.config.wild import WildConfig
from nerf.core.errors import UserError
from nerf.core.files import as_shape

SOURCES = ("default", "preset", "workspace", "file", "typed")  # of a value, weakest first
ASKED = ("file", "typed")  # sources that are the user's own words in this run
JSON_FORMAT = 2  # of config.json
WAY_OUT = (
    "put the file back as the run wrote it, choose another --workspace, or start over with --ckpt scratch and without --test"
)

_HELP_OPENING = """\
Somnia: text, a picture or posed photographs to a textured 3D model.

  python main.py --text "a hamburger" --workspace trial -O            train, then write the video and the mesh
  python main.py --workspace trial -O --test --save_mesh              write them again from the newest checkpoint
  python main.py --image burger_rgba.png --workspace trial -O         train from a picture (see preprocess_image.py)
  python main.py --data photographs/ --workspace trial                train from photographs

Ranges are in parentheses, defaults in brackets. Every switch has a --no_ form. Typed flags override --file, and files
override presets."""
_HELP_CLOSING = """\
Other
  --file FILE                       read more flags from a file with shell quoting; may be given several times
  -h, --help                        show this text

Exit codes: 0 success, 1 failure, 2 bad input (the message says what to do), 130 stopped by Ctrl-C, 143 by SIGTERM,
129 by a closed terminal (use nohup to go on without it)."""


@dataclass(frozen=True)
class Config:
    """Every option, by group.

    ``sources`` maps a flag's name to one of :data:`SOURCES`, and ``presets`` names those applied, in order; neither counts
    when two configs are compared.
    """

    prompt: PromptConfig = PromptConfig()
    data: DataConfig = DataConfig()
    wild: WildConfig = WildConfig()
    lights: HallucinationConfig = HallucinationConfig()
    guidance: GuidanceConfig = GuidanceConfig()
    camera: CameraConfig = CameraConfig()
    field: FieldConfig = FieldConfig()
    render: RenderConfig = RenderConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    optim: OptimConfig = OptimConfig()
    loss: LossConfig = LossConfig()
    output: OutputConfig = OutputConfig()
    mesh: MeshConfig = MeshConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    dmtet: DmtetConfig = DmtetConfig()
    gui: GuiConfig = GuiConfig()
    sources: dict[str, str] = dataclasses.field(default_factory=dict, compare=False)
    presets: tuple[str, ...] = dataclasses.field(default=(), compare=False)

    def value(self, flag: str) -> Any:
        """The value of a flag by its name on the command line.

        Raises:
            KeyError: there is no such flag.
        """
        group, option = OPTIONS[flag]
        return getattr(getattr(self, group), option.name)

    def source(self, flag: str) -> str:
        """Where the value of a flag came from."""
        return self.sources.get(flag, "default")

    def asked(self, flag: str) -> bool:
        """Whether the user gave the value: on the command line or in a ``--file``."""
        return self.source(flag) in ASKED

    def items(self) -> Iterator[tuple[str, Any, str]]:
        """(flag, value, source) of every option."""
        for flag in OPTIONS:
            yield flag, self.value(flag), self.source(flag)

    @property
    def span(self) -> tuple[int, int]:
        """First and last step of the schedule: ``--exp_start_iter`` and ``--exp_end_iter``, or the whole run."""
        end = self.schedule.exp_end_iter
        return self.schedule.exp_start_iter or 0, self.optim.iters if end is None else end

    @property
    def stages(self) -> tuple[str, ...]:
        """Names of the stages of the run, in their order."""
        return self.dmtet.stages

    @property
    def painted(self) -> bool:
        """Whether the mesh stage paints a mesh file, whose geometry stays as it is."""
        return PAINTED in self.presets

    @property
    def from_mesh_file(self) -> bool:
        """Whether the mesh stage paints a mesh file, or refines one by words or pictures."""
        return self.painted or MESH_FILE in self.presets

    @property
    def trains(self) -> bool:
        """Whether this run trains, rather than only writing images or a mesh of a finished one."""
        return not (self.output.test or self.output.six_views)

    @property
    def starts_over(self) -> bool:
        """Whether the run discards the checkpoints of its stages (``--ckpt scratch``)."""
        return self.trains and self.runtime.ckpt == "scratch"


# Group name -> class, read off the annotations of Config.
GROUPS: dict[str, type[Group]] = {
    f.name: f.type for f in dataclasses.fields(Config) if isinstance(f.type, type) and issubclass(f.type, Group)
}
# Flag name -> (group name, field).
OPTIONS: dict[str, tuple[str, Field]] = {flag_of(f): (group, f) for group, f in iterate(GROUPS)}
# Flag name -> the stage whose first checkpoint fixes it for the workspace, or RUN for that of any stage.
KEPT: dict[str, str] = {flag: field.metadata["kept"] for flag, (_, field) in OPTIONS.items() if field.metadata["kept"]}


def with_values(config: Config, values: Mapping[str, Any], source: str) -> Config:
    """A copy with other values, by flag name, marked as coming from ``source``.

    Raises:
        UserError: a value its option refuses.
    """
    changed: dict[str, dict[str, Any]] = {}
    for flag, value in values.items():
        group, option = OPTIONS[flag]
        value = tuple(value) if isinstance(value, list) else value
        if option.metadata["each"] and not isinstance(value, tuple):
            value = (value,)  # one for all guidance models
        changed.setdefault(group, {})[option.name] = value
    groups = {group: dataclasses.replace(getattr(config, group), **inside) for group, inside in changed.items()}
    return dataclasses.replace(config, **groups, sources=config.sources | dict.fromkeys(values, source))


def with_preset(config: Config, name: str) -> Config:
    """A copy with the values of ``presets.PRESETS[name]`` where no stronger source than a preset gave one.

    Options that belong to each guidance model are set for the model that the preset is of (``presets.GUIDANCE_OF``), else for
    all of them.
    """
    values = dict(PRESETS[name])
    models, of = config.guidance.guidance, GUIDANCE_OF.get(name)
    for flag in [flag for flag in values if of is not None and OPTIONS[flag][1].metadata["each"]]:
        value = values.pop(flag)
        if of in models:
            place, option = models.index(of), OPTIONS[flag][1]
            values[flag] = with_value_of(option, config.value(flag), place, len(models), value)
    return dataclasses.replace(with_weak_values(config, values), presets=(*config.presets, name))


def with_weak_values(config: Config, values: Mapping[str, Any]) -> Config:
    """A copy with the values, by flag name, that no stronger source than a preset gave."""
    unset = {flag: value for flag, value in values.items() if config.source(flag) in ("default", "preset")}
    if config.optim.bf16:  # the user's choice of mixed precision replaces that of the preset
        unset.pop("fp16", None)
    return with_values(config, unset, "preset")


def parse(argv: Sequence[str]) -> Config:
    """Read a command line (without the program's name); ``--help`` prints and exits.

    Returns:
        The defaults with the values that were typed or given in a ``--file``; no presets.

    Raises:
        UserError: an unknown flag, a value out of range, something not built yet, or flags that exclude each other.
        SystemExit: ``--help`` was printed.
    """
    words = list(argv[1:] if argv and argv[0] == "--" else argv)
    if any(word in words for word in HELP):
        print(help_text(GROUPS, _HELP_OPENING, _HELP_CLOSING), end="")
        raise SystemExit(0)
    flags = {flag: flag_for(field) for flag, (_, field) in OPTIONS.items()} | read_only_flags()
    typed = read_words(words, flags | {"file": FILE})
    in_files: dict[str, Any] = {}
    for path in typed.pop("file", []):
        inside = split_file(path)
        try:
            in_files |= read_words(inside, flags)
        except UserError as error:
            raise UserError(f"--file {path}: {error}") from None
    config = Config()
    for values, source in ((in_files, "file"), (typed, "typed")):
        values = without_refused(values)
        values = {flag: as_given(OPTIONS[flag][1], value) for flag, value in values.items()}
        config = with_values(config, values, source)
    config = _with_path_of_switches(_checked(config))
    return _with_viewer_of_switches(_with_stages_of_switches(_with_guidance_of_switches(config)))


def _checked(config: Config) -> Config:
    """The options of a command line, unless two of them exclude each other or the workspace is not named."""
    try:
        os.fsencode(config.output.workspace).decode()
    except UnicodeDecodeError:
        raise UserError(
            f"--workspace {config.output.workspace!r} is not a name in UTF-8, and checkpoints in such a folder could not be "
            "read again; choose another name"
        ) from None
    if config.runtime.O and config.runtime.O2:
        raise UserError("-O and -O2 are two presets for different networks; give one of them")
    if config.optim.fp16 and config.optim.bf16:
        raise UserError("--fp16 and --bf16 exclude each other; give one of them")
    if config.guidance.vram_O and config.guidance.compile_guidance != "none":
        raise UserError(
            "--compile_guidance needs the weights to stay on the GPU, and --vram_O moves them; leave one of them out"
        )
    return config


def _with_path_of_switches(config: Config) -> Config:
    """``--taichi_ray`` is ``--cuda_ray`` as well: the same path on another backend."""
    if not config.render.taichi_ray or config.render.cuda_ray:
        return config
    if config.asked("cuda_ray"):
        raise UserError("--taichi_ray and --no_cuda_ray contradict each other; leave one of them out")
    return with_values(config, {"cuda_ray": True}, config.source("taichi_ray"))


def _with_guidance_of_switches(config: Config) -> Config:
    """``--IF`` stands for IF in place of SD in ``--guidance``; from here on only the latter counts."""
    names = config.guidance.guidance
    if not config.guidance.IF or "IF" in names:
        return config
    names = tuple("IF" if name == "SD" else name for name in names) if "SD" in names else (*names, "IF")
    return with_values(config, {"guidance": names}, config.source("IF"))


def _with_stages_of_switches(config: Config) -> Config:
    """``--dmtet`` is a short form of ``--stages``; from here on only the latter counts."""
    if not config.dmtet.dmtet:
        return config
    if not config.asked("stages"):
        return with_values(config, {"stages": mesh_stages(STAGE_KINDS)}, config.source("dmtet"))
    if not mesh_stages(config.stages):
        raise UserError(f"--dmtet and --stages {','.join(config.stages)} contradict each other; leave one of them out")
    return config


def _with_viewer_of_switches(config: Config) -> Config:
    """``--gui`` is a short form of ``--viewer desktop``; from here on only the latter counts."""
    if not config.gui.gui:
        return config
    if config.asked("viewer") and config.gui.viewer != "desktop":
        raise UserError(f"--gui and --viewer {config.gui.viewer} contradict each other; leave one of them out")
    return with_values(config, {"viewer": "desktop"}, config.source("gui"))


def mesh_stages(names: Iterable[str]) -> tuple[str, ...]:
    """Those of some stages that train a mesh."""
    return tuple(name for name in names if STAGE_KINDS[name].triangles)


def describe(config: Config) -> list[str]:
    """Lines for the log that say which values were typed, which came from a file, a workspace or a preset."""
    lines = []
    presets = ", ".join(REASONS[name] for name in config.presets)
    for source in reversed(SOURCES[1:]):
        words = [as_typed(flag, value) for flag, value, came_from in config.items() if came_from == source]
        if words:
            lines.append(f"{source}{f' ({presets})' if source == 'preset' else ''}: {' '.join(words)}")
    return [*lines, "default: all others (config.json lists every value)"]


def describe_stages(config: Config, stages: Iterable[Stage]) -> list[str]:
    """A line for the log for each stage that has other values than the run: those of its presets, and those derived."""
    lines = []
    for stage in stages:
        own = {flag: value for flag, value, _ in stage.config.items() if value != config.value(flag) and flag != "ckpt"}
        reasons = ", ".join(REASONS[name] for name in stage.config.presets if name not in config.presets)
        if own:
            words = " ".join(as_typed(flag, value) for flag, value in own.items())
            lines.append(f"stage {stage.name}{f' ({reasons})' if reasons else ''}: {words}")
    return lines


def as_typed(flag: str, value: Any) -> str:
    """One flag with its value as it could be typed."""
    kind = kind_of(OPTIONS[flag][1])
    if kind.scalar is bool:
        return dashed(flag) if value else f"--no_{flag}"
    words = value if isinstance(value, tuple) else (value,)
    return " ".join([dashed(flag), *(shlex.quote(as_words(word)) for word in words)])


def to_json(config: Config) -> dict[str, Any]:
    """A dictionary for ``json.dump``: every option by flag name, with its value and its source."""
    options = {flag: {"value": value, "source": source} for flag, value, source in config.items()}
    plain: dict[str, Any] = json.loads(json.dumps({"format": JSON_FORMAT, "presets": config.presets, "options": options}))
    return plain


class _Entry(msgspec.Struct):
    """What ``to_json`` writes of an option; whether the value is allowed is for the option to say."""

    value: Any
    source: Literal["default", "preset", "workspace", "file", "typed"]


class _Stored(msgspec.Struct):
    """What ``to_json`` writes."""

    format: int
    options: dict[str, _Entry]
    presets: list[str] = []


def from_json(stored: Any) -> Config:
    """The config that ``to_json`` wrote; options it lacks keep their defaults.

    Raises:
        UserError: the value is of another format, names an unknown option or preset, or holds a value that is refused.
    """
    try:
        found = as_shape(stored, "the stored options", WAY_OUT, _Stored)
    except UserError as error:
        if isinstance(stored, dict) and stored.get("format") == JSON_FORMAT:
            raise
        raise UserError(f"the stored options are not of format {JSON_FORMAT}; {WAY_OUT}") from error
    if found.format != JSON_FORMAT:
        raise UserError(f"the stored options are not of format {JSON_FORMAT}; {WAY_OUT}")
    options, presets = found.options, tuple(found.presets)
    unknown = [f"option --{flag}" for flag in sorted(set(options) - set(OPTIONS))]
    unknown += [f"preset {name!r}" for name in presets if name not in PRESETS]
    if unknown:
        what = f"this version does not know the stored {unknown[0]:.80}"
        raise UserError(f"{what}; use the version that wrote it, or start over with --ckpt scratch")
    config = Config()
    for source in SOURCES:
        values = {flag: entry.value for flag, entry in options.items() if entry.source == source}
        try:
            config = with_values(config, values, source)
        except UserError as error:
            raise UserError(f"the stored options are damaged: {error}; {WAY_OUT}") from error
    sources = {flag: source for flag, source in config.sources.items() if source != "default"}
    return dataclasses.replace(config, sources=sources, presets=presets)
