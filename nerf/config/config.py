"""The options of a run, frozen: ``parse(argv)`` makes them, ``config.sources`` says where each value came from.

Defaults < presets < ``--file`` < what was typed. Nothing here imports torch. The flags are in ``nerf/config/groups.py``.
"""

import dataclasses
import json
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from nerf.config.groups import (
    GROUPS,
    CameraConfig,
    DataConfig,
    DmtetConfig,
    FieldConfig,
    GuiConfig,
    GuidanceConfig,
    LossConfig,
    OptimConfig,
    OutputConfig,
    PromptConfig,
    RenderConfig,
    RuntimeConfig,
    ScheduleConfig,
)
from nerf.config.parser import (
    build_parser,
    dashed,
    flag_of,
    help_text,
    iterate,
    kind_of,
    read_words,
    refuse_unbuilt,
    split_file,
)
from nerf.config.presets import PRESETS, REASONS, STAGE_PRESETS
from nerf.core.errors import UserError

JSON_FORMAT = 1
SOURCES = ("default", "preset", "workspace", "file", "typed")

_HELP_OPENING = """\
Somnia: from a sentence, or from posed photographs, to a textured model.

  python main.py --text "a hamburger" --workspace trial -O            train, then write the video and the mesh
  python main.py --workspace trial -O --test --save_mesh              write them again from the newest checkpoint
  python main.py --data photographs/ --workspace trial                the same trainer on photographs

Defaults stand in brackets. Every switch has a --no_ form. Typed flags win over --file, files over presets."""
_HELP_CLOSING = """\
Also
  --file FILE                       read more flags from a file, quoted as in a shell; may be given several times
  -h, --help                        this text

Exit codes: 0 done, 1 failure, 2 bad input (one sentence says what to do), 130 stopped by Ctrl-C, 143 by SIGTERM."""

# flag name -> (group name, field)
OPTIONS: dict[str, tuple[str, dataclasses.Field]] = {flag_of(f): (group, f) for group, f in iterate(GROUPS)}


@dataclass(frozen=True)
class Config:
    """Every option, by group; see ``nerf/config/groups.py`` for what each means.

    ``sources`` maps a flag's name to "default", "preset", "workspace", "file" or "typed", and ``presets`` names those
    applied, in order; neither counts when two configs are compared.
    """

    prompt: PromptConfig = dataclasses.field(default_factory=PromptConfig)
    data: DataConfig = dataclasses.field(default_factory=DataConfig)
    guidance: GuidanceConfig = dataclasses.field(default_factory=GuidanceConfig)
    camera: CameraConfig = dataclasses.field(default_factory=CameraConfig)
    field: FieldConfig = dataclasses.field(default_factory=FieldConfig)
    render: RenderConfig = dataclasses.field(default_factory=RenderConfig)
    schedule: ScheduleConfig = dataclasses.field(default_factory=ScheduleConfig)
    optim: OptimConfig = dataclasses.field(default_factory=OptimConfig)
    loss: LossConfig = dataclasses.field(default_factory=LossConfig)
    output: OutputConfig = dataclasses.field(default_factory=OutputConfig)
    runtime: RuntimeConfig = dataclasses.field(default_factory=RuntimeConfig)
    dmtet: DmtetConfig = dataclasses.field(default_factory=DmtetConfig)
    gui: GuiConfig = dataclasses.field(default_factory=GuiConfig)
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
        """The stages of the run, in their order."""
        said = self.source("stages") != "default"
        return self.dmtet.stages if said or not self.dmtet.dmtet else ("dmtet",)

    @property
    def trains(self) -> bool:
        """Whether this run trains, rather than only writing pictures or a mesh of a finished one."""
        return not (self.output.test or self.output.six_views)


def with_values(config: Config, values: dict[str, Any], source: str) -> Config:
    """A copy with other values, by flag name, marked as coming from ``source``.

    Raises:
        UserError: a value its option refuses.
    """
    changed: dict[str, dict[str, Any]] = {}
    for flag, value in values.items():
        group, option = OPTIONS[flag]
        changed.setdefault(group, {})[option.name] = tuple(value) if isinstance(value, list) else value
    groups = {group: dataclasses.replace(getattr(config, group), **inside) for group, inside in changed.items()}
    return dataclasses.replace(config, **groups, sources=config.sources | dict.fromkeys(values, source))


def with_preset(config: Config, name: str) -> Config:
    """A copy with the values of ``presets.PRESETS[name]`` where the user neither typed one nor gave one in a file."""
    open_to_it = {k: v for k, v in PRESETS[name].items() if config.source(k) in ("default", "preset")}
    return dataclasses.replace(with_values(config, open_to_it, "preset"), presets=(*config.presets, name))


def for_stage(config: Config, stage: str) -> Config:
    """The options as one stage sees them: the mesh stage renders larger, and has presets of its own."""
    if stage == "nerf":
        return with_values(config, {"dmtet": False}, config.source("dmtet"))
    for name in STAGE_PRESETS[stage]:
        if name == stage or name.removeprefix(f"{stage} ") in config.presets:
            config = with_preset(config, name)
    scale, camera, mesh = config.dmtet.dmtet_reso_scale, config.camera, config.dmtet
    size = {"w": max(int(camera.w * scale), 1), "h": max(int(camera.h * scale), 1)}
    textureless = {"textureless_ratio": 0.0} if mesh.lock_geo else {}  # a locked shape has nothing to learn from it
    iters = {"iters": mesh.dmtet_iters or config.optim.iters}
    return with_values(config, {"dmtet": True} | size | textureless | iters, "preset")


def parse(argv: Sequence[str]) -> Config:
    """Make the config of a command line (without the program's name); ``--help`` prints and exits.

    Raises:
        UserError: an unknown flag, a value out of range, something not built yet, or nothing to do.
        SystemExit: ``--help`` was printed.
    """
    words = list(argv[1:] if argv and argv[0] == "--" else argv)
    if "-h" in words or "--help" in words:
        print(help_text(GROUPS, _HELP_OPENING, _HELP_CLOSING), end="")
        raise SystemExit(0)
    parser = build_parser(GROUPS)
    parser.add_argument("--file", action="append")
    known = [dashed(flag) for flag in OPTIONS] + ["--file", "--help"]
    typed = read_words(parser, words, known)
    from_files: dict[str, Any] = {}
    for path in typed.pop("file", []):
        from_files |= read_words(parser, split_file(path), known)
    asked = from_files | typed
    for flag, value in asked.items():
        refuse_unbuilt(OPTIONS[flag][1], value)
    if asked.get("O") and asked.get("O2"):
        raise UserError("-O and -O2 are two presets for different networks; give one of them")
    config = with_values(with_values(Config(), from_files, "file"), typed, "typed")
    wanted = {"O": config.runtime.O, "O2": config.runtime.O2, "photographs": config.data.data is not None}
    for name in (n for n, on in wanted.items() if on):
        config = with_preset(config, name)
    check(config)
    return config


def check(config: Config) -> None:
    """Refuse what no single option can see: contradictions between options, and a run with nothing to do."""
    text, schedule, grid = config.prompt.text, config.span, config.field
    if text is not None and not text.strip():
        raise UserError('--text is empty; say what you want to see, as in --text "a hamburger"')
    if config.trains and text is None and config.data.data is None:
        raise UserError('nothing to do: give --text "a hamburger", --data FOLDER, or --test for a finished workspace')
    if config.data.data is not None and not config.data.data.strip():
        raise UserError("--data is empty; name a folder with transforms.json, a COLMAP model or NeuS cameras")
    if not config.output.workspace.strip():
        raise UserError("--workspace is empty; name a folder, as in --workspace trial")
    if not schedule[0] < schedule[1]:
        raise UserError(f"--exp_start_iter must be below --exp_end_iter (or --iters), got {schedule[0]} and {schedule[1]}")
    if grid.base_resolution > grid.finest_resolution:
        raise UserError(
            f"--grid_finest must be at least --grid_coarsest, got {grid.finest_resolution} and {grid.base_resolution}"
        )
    if config.dmtet.dmtet and config.stages == ("nerf",):
        raise UserError("--dmtet and --stages nerf contradict each other; leave one of them out")
    if config.stages == ("nerf",) and config.dmtet.init_with:
        raise UserError("--init_with is for the mesh stage; add --dmtet, or give a NeRF's checkpoint with --ckpt")
    if config.stages == ("nerf",) and config.dmtet.lock_geo:
        raise UserError("--lock_geo keeps the shape of a mesh, and this run has no mesh stage; add --dmtet")
    if "nerf" in config.stages and config.dmtet.init_with:
        raise UserError(
            "--init_with and --stages nerf,dmtet contradict each other: the mesh of both stages starts from their "
            "own NeRF; leave --init_with out, or train the mesh alone with --dmtet"
        )
    if config.optim.fp16 and config.optim.bf16 and config.source("fp16") != "preset":
        raise UserError("--fp16 and --bf16 exclude each other; give one of them")
    if config.output.export_frame == "source" and config.trains and config.data.data is None:
        raise UserError("--export_frame source needs the axes of --data; a run from words alone has only its own")


def describe(config: Config) -> list[str]:
    """Lines for the log that say which values were typed, which came from a file, a workspace or a preset."""
    lines = []
    presets = ", ".join(REASONS[name] for name in config.presets)
    for source in reversed(SOURCES[1:]):
        said = [_as_typed(flag, value) for flag, value, came_from in config.items() if came_from == source]
        if said:
            lines.append(f"{source}{f' ({presets})' if source == 'preset' else ''}: {' '.join(said)}")
    return [*lines, "default: all others (config.json lists every value)"]


def _as_typed(flag: str, value: Any) -> str:
    """One flag with its value as it could be typed."""
    kind = kind_of(OPTIONS[flag][1])
    if kind.scalar is bool:
        return dashed(flag) if value else f"--no_{flag}"
    words = value if isinstance(value, tuple) else (value,)
    return " ".join([dashed(flag), *(shlex.quote(f"{w:g}" if isinstance(w, float) else str(w)) for w in words)])


def to_json(config: Config) -> dict[str, Any]:
    """A dictionary for ``json.dump``: every option by flag name, with its value and its source."""
    options = {flag: {"value": value, "source": source} for flag, value, source in config.items()}
    return json.loads(json.dumps({"format": JSON_FORMAT, "presets": config.presets, "options": options}))


def from_json(stored: dict[str, Any]) -> Config:
    """The config that ``to_json`` wrote; options it lacks keep their defaults.

    Raises:
        UserError: the dictionary is of another format, names an unknown option, or holds a value that is refused.
    """
    options = stored.get("options") if isinstance(stored, dict) else None
    if not isinstance(options, dict) or stored.get("format") != JSON_FORMAT:
        raise UserError(f"the stored options are not of format {JSON_FORMAT}; start over with --ckpt scratch")
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise UserError(f"this version does not know the stored option --{unknown[0]}; start over with --ckpt scratch")
    config = Config()
    for source in SOURCES:
        values = {flag: entry["value"] for flag, entry in options.items() if entry.get("source") == source}
        config = with_values(config, values, source)
    sources = {flag: source for flag, source in config.sources.items() if source != "default"}
    return dataclasses.replace(config, sources=sources, presets=tuple(stored.get("presets", ())))
