"""Photographs in the wild: NeRF-W's controlled perturbation of lego, by this program with and without its parts.

    python -m benchmarks.wild both --data SHARED_DATA --methods wild plain [--training_minutes 15] [--extra "--iters 2500"]

The training photographs are perturbed as by ``scripts/perturb_photos.py`` with seed 0, all but the first, and the clean test
views are shown in the light of the first. Beside PSNR and SSIM the two things are measured that the perturbation confounds:
masks against the true occluders, and test views in the light of perturbed photographs against their true colours there.
H rows, W columns.
"""

import os
import subprocess
import sys
from argparse import Namespace
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import torch
from PIL import Image
from torch import Tensor

from benchmarks.records import read_record, read_result, write_record
from benchmarks.runs import ROOT, add_flags, parse_flags, report, run_main, work_through
from nerf.core.errors import UserError
from nerf.core.files import read_json
from nerf.core.images import contact_sheet, to_uint8, write_png
from nerf.core.ranges import SEED, above, between
from nerf.core.script import Parser, run
from nerf.data.perturbation import draw_perturbation
from nerf.run import metrics
from nerf.run.half_images import eight_bits

CASES = ("clean", "colour", "occluders", "both")
METHODS: dict[str, list[str]] = {
    "wild": ["--wild"],
    "plain": [],
    "encoder": ["--appearance", "encoder", "--patch_grid", "16"],
    "embedding": ["--appearance", "embedding"],
    "mask": ["--occluders", "mask"],
    "robust": ["--occluders", "robust"],
}
PUBLISHED = {"clean": 30.93, "colour": 28.20, "occluders": 28.60, "both": 24.86}  # PSNR of nerf_pl's NeRF-W at 200 x 200
LIGHTS = range(1, 100, 9)  # perturbed photographs whose light is shown on test views
SHOWN_LIGHTS = 3
MASKED = 0.5  # from which a pixel of a mask counts
VIDEO = "--dataset_size_test 4 --W 100 --H 100 --no_save_mesh --eval_interval 100000"  # none of it is what is measured
COLUMNS = {
    "PSNR": ("test_psnr", 2), "SSIM": ("test_ssim", 4), "own light, left": ("psnr_left", 2), "own light, all": ("psnr_all", 2),
    "leak": ("leak", 2), "other lights": ("psnr_lights", 2), "mask IoU": ("mask_iou", 3), "steps": ("steps", 0),
    "training s": ("train_seconds", 0), "all s": ("seconds", 0), "CPU s": ("cpu_seconds", 0), "MB": ("megabytes", 0),
}  # fmt: skip


class Figures(msgspec.Struct):
    """What is read of ``result.json``."""

    steps: int
    train_seconds: float
    test_psnr: float
    test_ssim: float
    wild: dict[str, Any] | None = None


def perturbed(case: str, args: Namespace) -> Path:
    """The folder of a case, made where it has to be."""
    if case == "clean":
        return args.data / "lego"
    folder = args.work / "photographs" / case
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        flags = {"colour": ["--colour"], "occluders": ["--occluders"], "both": ["--colour", "--occluders"]}[case]
        script = ROOT / "scripts" / "perturb_photos.py"
        made = subprocess.run([sys.executable, str(script), str(args.data / "lego"), str(folder), *flags])
        if made.returncode:
            raise UserError(f"{args.data / 'lego'} cannot be perturbed, as is said above; give NeRF's lego as DATA/lego")
    return folder


def one_run(case: str, method: str, args: Namespace) -> dict[str, Any]:
    """Train on a case by a method, and measure it; a failure is a result, too."""
    workspace, folder = args.work / f"{case}_{method}_{args.seed}", perturbed(case, args)
    words = ["--data", str(folder), *METHODS[method], "--ckpt", "scratch", "--minutes", f"{args.training_minutes:g}"]
    words += ["--threads", str(args.threads), "--seed", str(args.seed), *VIDEO.split(), *args.extra]
    found = run_main(words, workspace) | {"prompt": f"{case}, {method}", "group": case, "seed": args.seed}
    if found["returncode"]:
        return found | {"failure": f"exit code {found['returncode']}"}
    figures = read_result(workspace, Figures)
    found |= {k: v for k, v in msgspec.structs.asdict(figures).items() if k != "wild"}
    if figures.wild is not None:
        left, whole = (figures.wild[light]["right"]["psnr"] for light in ("left", "whole"))
        found |= {"psnr_left": left, "psnr_all": whole, "leak": figures.wild["leak"]}
    if case in ("occluders", "both"):
        found["mask_iou"] = mask_iou(workspace, folder)
    return found | shown(case, workspace, args)


def mask_iou(workspace: Path, folder: Path) -> float | None:
    """Mean intersection over union of written masks and true occluders, over photographs that have both; None without."""
    truth = read_json(folder / "truth" / "perturbation.json", "make the folder again", dict[str, Any])["photographs"]
    values = []
    for name, said in truth.items():
        path = workspace / "results" / "masks" / f"{name.removeprefix('./').replace('/', '_')}.png"
        if "square" in said and path.is_file():
            mask = np.asarray(Image.open(path).convert("L")) >= 255 * MASKED
            occluded = np.asarray(Image.open(folder / said["mask"]).convert("L")) > 0
            values.append((mask & occluded).sum() / max((mask | occluded).sum(), 1))
    return float(np.mean(values)) if values else None


def in_light(rgba: Tensor, index: int) -> Tensor:
    """A clean photograph [H, W, 4] in the light of a perturbed training photograph, over white, [H, W, 3]."""
    drawn = draw_perturbation(index, *rgba.shape[:2], colour=True, occluders=False)
    assert drawn.scale is not None and drawn.offset is not None
    color = (rgba[..., :3] * torch.from_numpy(drawn.scale) + torch.from_numpy(drawn.offset)).clamp(0, 1).float()
    return color * rgba[..., 3:] + 1 - rgba[..., 3:]


def shown(case: str, workspace: Path, args: Namespace) -> dict[str, Any]:
    """Test views in the light of perturbed photographs against their true colours, and a picture of some of them."""
    import somnia

    with somnia.open_run(workspace=str(workspace), test=True, threads=args.threads) as opened:
        trainer = opened.trainer
        photos, model = trainer.evaluator.held_out["test"], trainer.model
        chosen = [round(k * (len(photos) - 1) / (args.lit_views - 1)) for k in range(args.lit_views)]
        settings, values, cells = trainer.evaluator.settings(), [], []

        def image(i: int, vector: Tensor | None) -> Tensor:
            batch, _ = photos.eval_batch(i)
            assert batch.views is not None
            lit = batch.settings(settings) if vector is None else replace(batch.settings(settings), appearance=vector)
            return eight_bits(trainer.evaluator.render(batch.views, lit).image.reshape(*photos.store.size(i), 3))

        with trainer.ema.applied():
            i = chosen[len(chosen) // 2]
            cells += [photos.image(i), image(i, None)]
            for number, index in enumerate(LIGHTS if case in ("colour", "both") and model.appearance is not None else ()):
                vector = model.appearance.light(index)
                values += [float(metrics.psnr(image(k, vector), in_light(photos.store.image(k), index))) for k in chosen]
                if number < SHOWN_LIGHTS:
                    cells += [in_light(photos.store.image(i), index), image(i, vector)]
    sheet = contact_sheet([to_uint8(cell) for cell in cells], columns=2, captions=["truth", "render"] * (len(cells) // 2))
    write_png(workspace / "sheet.png", sheet)
    return {"psnr_lights": float(np.mean(values))} if values else {}


def table(results: dict[str, dict]) -> str:
    """The record as a Markdown table."""
    titles = ["case", "method", *COLUMNS]
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in results.values():
        case, _, method = row["prompt"].partition(", ")
        cells = [_cell(row.get(key), digits) for key, digits in COLUMNS.values()]
        said = f"{method}: {row['failure']}" if row.get("failure") else method
        lines.append(f"| {case} | {said} | " + " | ".join(cells) + " |")
    known = ", ".join(f"{case} {value:.2f}" for case, value in PUBLISHED.items())
    return "\n".join(lines) + f"\n\nNeRF-W as published for 200 x 200 pixels (nerf_pl): {known} dB.\n"


def _cell(value: Any, digits: int) -> str:
    """A value as the table shows it."""
    return "-" if value is None else f"{value:.{digits}f}"


def parser_of() -> Parser:
    """The command line."""
    parser = Parser(prog="benchmarks.wild", description=__doc__.split("\n", 1)[0])
    parser.add_argument("cases", nargs="*", choices=CASES, default=["both"], metavar="CASE", help=f"{', '.join(CASES)} [both]")
    parser.add_argument(
        "--methods", nargs="+", choices=METHODS, default=["wild", "plain"], help=f"{', '.join(METHODS)} [wild plain]"
    )
    given = os.environ.get("SOMNIA_TEST_DATA")
    parser.add_argument("--data", type=Path, default=given and Path(given), help="folder with lego/ [SOMNIA_TEST_DATA]")
    add_flags(parser, "run", 1e6, "wild", parallel=False)
    parser.number("--training_minutes", float, 15.0, above(0, 1e6), "of each run")
    parser.number("--threads", int, 1, between(1, 1024), "of each run")
    parser.number("--seed", int, 0, SEED, "of each run")
    parser.number("--lit_views", int, 5, between(2, 25), "test views that are shown in other lights")
    return parser


def main() -> int:
    """Run what is left to do, and write the record and its table."""
    args = parse_flags(parser_of())
    if args.data is None or not (args.data / "lego").is_dir():
        raise UserError(f"--data must name the folder with lego/, got {args.data}; or set SOMNIA_TEST_DATA")
    args.data, args.work = args.data.resolve(), args.work.resolve()
    results = read_record(args.out / "wild.json")
    names = {f"{case}, {method}, seed {args.seed}": (case, method) for case in args.cases for method in args.methods}

    def done(name: str, result: dict) -> None:
        results[name] = result
        write_record(args.out, "wild", results, table(results), [])

    todo = [name for name in names if args.again or name not in results]
    skipped = work_through(todo, lambda name: one_run(*names[name], args), done, args.minutes, 1)
    report(table(results), skipped, args.minutes, "run")
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
