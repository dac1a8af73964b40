"""The table of the text-to-3D benchmark, worst first, and the page of the docs that shows every kind as it comes out."""

import itertools
from collections.abc import Collection
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import mesh_measure, shape_measure
from benchmarks.mesh_measure import Buffers, mesh_buffers, true_buffers
from guidance.prior.benchmark import JUDGING, PROMPTS, TRAINED
from guidance.prior.camera import look_at
from guidance.prior.references import cameras_at
from guidance.prior.shapes import Shape, canonical, caption_of, palette
from nerf.core.files import write_atomically
from nerf.core.images import to_uint8, write_jpeg
from nerf.core.shading import SHOW_AMBIENT, SHOW_LIGHT
from nerf.run.showing import BESIDE, MARGIN, RAISED

HEAD = (
    "prompt", "half", "seed", "IoU", "best ball", "silhouette", "outline F", "albedo error", "normals", "genus (true)",
    "caves (true)", "front/back", "recognised", "by a person", "seconds",
)  # fmt: skip
MEANS = ("iou", "ball", "silhouette", "boundary_f", "albedo", "normal", "seconds")
LEAST_IOU, MOST_CAVES, MEAN_IOU, MOST_ALBEDO, GENERA, MOST_ALIKE = 0.50, 0.03, 0.75, 0.08, 32, 0.95  # the bars
# Polar angle and azimuth of the pictures: raised in front to the right, raised behind to the left, below beside the front.
SHOWN = ((RAISED, BESIDE), (RAISED, BESIDE + 180.0), (122.0, BESIDE))
SIZE = 192  # pixels
OVERVIEW, TILE, COLUMNS = "all.jpg", 96, 12  # the picture of all kinds: its name, pixels of a tile, kinds in a row
GREY = 0.74  # behind the object: white things are seen, and dark ones too


def failed(row: dict) -> bool:
    """Whether a run gave no mesh."""
    return "iou" not in row


def recognised(row: dict, seen: str = "recognised") -> bool:
    """Whether the prior takes a result for what it should be, or, with "true_recognised", its true shape."""
    return bool(row[seen] == caption_of(row["prompt"]).kind)


def ordered(results: dict[str, dict]) -> list[tuple[str, dict]]:
    """Names and rows, the worst first: failures, then by IoU."""
    return sorted(results.items(), key=lambda item: item[1].get("iou", -1.0))


def table(results: dict[str, dict]) -> str:
    """Results as a Markdown table, worst first, with the means of each half and how many results pass each bar."""
    lines = ["| " + " | ".join(HEAD) + " |", "|---" * len(HEAD) + "|"]
    lines += [_line(row) for _, row in ordered(results)]
    done = [row for row in results.values() if not failed(row)]
    first = [row for row in done if row["seed"] == min(row["seed"] for row in done)]
    lines += [_mean_line(half, [row for row in first if row["group"] == half]) for half in ("tuning", "judging")]
    return "\n".join(line for line in lines if line) + "\n\n" + "\n".join(f"- {line}" for line in bars(first)) + "\n"


def _line(row: dict) -> str:
    """One run as a line of the table."""
    if failed(row):
        cells = [
            row["prompt"],
            row["group"],
            f"{row['seed']}",
            f"failed: {row['failure']}",
            *[""] * 10,
            f"{row['seconds']:.0f}",
        ]
        return "| " + " | ".join(cells) + " |"
    front = {True: "right", False: "WRONG", None: "same"}[row["front_back"]]
    genus, caves = "open" if row["genus"] is None else row["genus"], _percent(row["caves"])
    cells = [
        row["prompt"],
        row["group"],
        f"{row['seed']}",
        *(f"{row[name]:.3f}" for name in ("iou", "ball", "silhouette", "boundary_f", "albedo")),
        f"{row['normal']:.0f}°",
        f"{genus} ({row['true_genus']})",
        f"{caves} ({_percent(row['true_caves'])})",
        front,
        "yes" if recognised(row) else f"as {row['recognised']}",
        row.get("person", "-"),
        f"{row['seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def _mean_line(half: str, rows: list[dict]) -> str:
    """The means of one half as a line of the table; empty without rows."""
    if not rows:
        return ""
    mean = {name: float(np.mean([row[name] for row in rows])) for name in MEANS}
    cells = [f"**mean of {len(rows)}, {half}**", half, "", f"**{mean['iou']:.3f}**"]
    cells += [f"{mean[name]:.3f}" for name in ("ball", "silhouette", "boundary_f", "albedo")]
    cells += [
        f"{mean['normal']:.0f}°",
        "",
        "",
        "",
        f"{sum(map(recognised, rows))} of {len(rows)}",
        "",
        f"{mean['seconds']:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def bars(rows: list[dict]) -> list[str]:
    """What is demanded, and what was measured of it, a line each."""
    judging = [row for row in rows if row["group"] == "judging"]
    if not rows:
        return []
    worst = min(rows, key=lambda row: row["iou"])
    fronts = [row for row in rows if row["front_back"] is not None]
    found = [
        f"worst IoU {worst['iou']:.3f}, {worst['prompt']} (bar: {LEAST_IOU:.2f})",
        f"above the best ball: {sum(row['iou'] > row['ball'] for row in rows)} of {len(rows)} (bar: all)",
        f"caves of at most {MOST_CAVES:.0%} of the volume beyond those of the true shape: "
        f"{sum(map(_sound, rows))} of {len(rows)} (bar: all)",
        f"genus of the true shape: {sum(row['genus'] == row['true_genus'] for row in rows)} of {len(rows)} "
        f"(bar: {GENERA} of {len(PROMPTS)})",
        f"front and back right: {sum(row['front_back'] for row in fronts)} of {len(fronts)} that differ (bar: all)",
        f"albedo error {np.mean([row['albedo'] for row in rows]):.3f} in the mean (bar: {MOST_ALBEDO:.2f})",
        f"recognised among {len(PROMPTS)} kinds: {sum(map(recognised, rows))} of {len(rows)}; of their true shapes, the upper "
        f"bound: {sum(recognised(row, 'true_recognised') for row in rows)} of {len(rows)}",
    ]
    if judging:
        mean = float(np.mean([row["iou"] for row in judging]))
        found.insert(0, f"mean IoU of the {len(judging)} judging prompts {mean:.3f} (bar: {MEAN_IOU:.2f} of {len(JUDGING)})")
    return found


def _sound(row: dict) -> bool:
    """Whether a closed mesh has hardly more caves than its true shape has: the hollow of an umbrella is one."""
    return row["caves"] is not None and row["caves"] - row["true_caves"] <= MOST_CAVES


def _percent(share: float | None) -> str:
    """A share of the volume; "-" of a mesh that is not closed."""
    return "-" if share is None else f"{100 * share:.1f} %"


def between_seeds(results: dict[str, dict], meshes: dict[str, Path]) -> list[str]:
    """How far the results of several seeds of a prompt differ, a line for each prompt with several meshes that are here."""
    found = []
    for prompt in dict.fromkeys(row["prompt"] for row in results.values()):
        rows = {name: row for name, row in results.items() if row["prompt"] == prompt and name in meshes}
        solids = [mesh_measure.voxelize(mesh_measure.read_mesh(meshes[name])) for name in rows if meshes[name].is_file()]
        if len(solids) < 2:
            continue
        mean = float(np.mean([mesh_measure.iou(a, b) for a, b in itertools.combinations(solids, 2)]))
        right = sum(map(recognised, rows.values()))
        found.append(
            f"{prompt}: mean IoU between {len(solids)} seeds {mean:.3f} (bar: below {MOST_ALIKE:.2f}), {right} of {len(rows)} "
            "recognised.\n"
        )
    return found


def true_shape(row: dict) -> Shape:
    """The member of the family that a result was compared with; the canonical one of a run that failed."""
    if failed(row):
        return canonical(row["prompt"])
    caption = caption_of(row["prompt"])
    return Shape(caption.kind, row["proportions"], palette(caption))


def framed(points: np.ndarray, cameras: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The cameras, with the narrowest lens that all of them see all points [V, 3] with."""
    poses = look_at(cameras["polar"], cameras["azimuth"], cameras["radius"]).double().numpy()
    reach = [np.abs(local[:, :2] / local[:, 2:]).max() for local in ((points - p[:, 3]) @ p[:, :3] for p in poses)]
    fovy = 2 * np.degrees(np.arctan(MARGIN * max(reach)))
    return {**cameras, "fovy": torch.full_like(cameras["fovy"], fovy)}


def picture(row: dict, mesh: Path | None, size: int = SIZE, light: bool = True) -> np.ndarray:
    """The result from :data:`SHOWN`, then its true shape, side by side, [S, 2 K S, 3] in [0, 1]; grey without a mesh."""
    shape = true_shape(row)
    true = shape_measure.true_surface(shape).vertices
    found = None if mesh is None else mesh_measure.read_mesh(mesh)
    polar, azimuth = torch.tensor(SHOWN).T
    cameras = framed(true if found is None else np.concatenate([true, found.vertices]), cameras_at(polar, azimuth))

    def shown(seen: Buffers) -> np.ndarray:
        ambient = SHOW_AMBIENT if light else 1.0
        return shape_measure.pictures(seen, SHOW_LIGHT, ambient, GREY).movedim(1, -1).numpy()

    truth = shown(true_buffers(shape, cameras, 2 * size))
    own = np.full_like(truth, GREY) if found is None else shown(mesh_buffers(found, cameras, 2 * size))
    return np.concatenate([*own, *truth], 1)


def write(page: Path, results: dict[str, dict], meshes: dict[str, Path], changed: Collection[str]) -> None:
    """Write the page, and its pictures into a folder of its name beside it.

    Args:
        page: the Markdown file.
        results: by workspace.
        meshes: of those that have one.
        changed: those whose picture is drawn again if there is one already.
    """
    folder = page.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    parts = [_introduction(results), table(results), *between_seeds(results, meshes)]
    shown: dict[str, tuple[int, Path]] = {}  # by prompt: the first seed with a picture
    for name, row in ordered(results):
        file = folder / f"{row['prompt'].replace(' ', '_')}_seed{row['seed']}.jpg"
        mesh = meshes.get(name)
        here = mesh is None or mesh.is_file()  # the picture of a mesh that is elsewhere stays
        if here and (name in changed or not file.is_file()):
            write_jpeg(file, to_uint8(picture(row, mesh, SIZE)))
        if file.is_file():
            shown[row["prompt"]] = min(shown.get(row["prompt"], (row["seed"], file)), (row["seed"], file))
            parts.append(f"## {row['prompt']}\n\n{_words(row)}\n\n![{row['prompt']}]({folder.name}/{file.name})\n")
    if shown:
        write_jpeg(folder / OVERVIEW, overview([shown[prompt][1] for prompt in PROMPTS if prompt in shown]))
        parts.insert(1, f"![The true shape of each kind above what came out]({folder.name}/{OVERVIEW})\n")
    text = "\n".join(parts)
    write_atomically(page, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def overview(files: list[Path]) -> np.ndarray:
    """The first view of each picture of the page, the true shape above the result, in rows of :data:`COLUMNS`; uint8."""
    rows = -(-len(files) // COLUMNS)
    whole = np.full((rows * 2 * TILE, min(len(files), COLUMNS) * TILE, 3), round(255 * GREY), dtype=np.uint8)
    for i, file in enumerate(files):
        with Image.open(file) as image:
            side, views = image.height, len(SHOWN)
            tiles = [image.crop((k * side, 0, (k + 1) * side, side)).resize((TILE, TILE)) for k in (views, 0)]
        y, x = i // COLUMNS * 2 * TILE, i % COLUMNS * TILE
        whole[y : y + 2 * TILE, x : x + TILE] = np.concatenate([np.asarray(tile) for tile in tiles])
    return whole


def _introduction(results: dict[str, dict]) -> str:
    """The opening of the page."""
    kinds = {caption_of(row["prompt"]).kind for row in results.values()}
    return f"""# Every kind as it comes out

Made by `python benchmarks/text_to_3d.py`, which runs `main.py` with both stages for a prompt of every kind, as `make demo`
does, and measures the GLB that a user gets against the true shapes of the family. Worst first;
{len(kinds)} of {len(PROMPTS)} kinds are measured here. Colours were held out from the training of the prior, except those of
{" and ".join(TRAINED)}. Settings may be chosen on the half "tuning", which has the prompts that were published first; the half
"judging" is only measured.

IoU, outlines, normals (mean angle) and colours are against the member of the family nearest to the result; "best ball" is
the best IoU of a ball. Genus and caves are those of the mesh, then of the true shape; caves are what no camera level with the
object or above it can see. "Recognised" is what the embedded prior takes lit views for among all kinds in the same colours
(`guidance/prior/classifier.py`), and "by a person" what somebody said who looked at this page.

The pictures are lit: the result from above in front, above behind, and below in front, then its true shape from there.
"""


def _words(row: dict) -> str:
    """The figures of one result in a line."""
    if failed(row):
        return f"{row['group']}, seed {row['seed']}: failed, {row['failure']}."
    genus = "not closed" if row["genus"] is None else f"genus {row['genus']} (true {row['true_genus']})"
    taken = "recognised" if recognised(row) else f"taken for a {row['recognised']}"
    return (
        f"{row['group'] or 'other'}, seed {row['seed']}: IoU {row['iou']:.3f} (best ball {row['ball']:.3f}), normals off by "
        f"{row['normal']:.0f}°, {genus}, caves {_percent(row['caves'])} (true {_percent(row['true_caves'])}), {taken}."
    )
