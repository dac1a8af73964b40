"""Rendering and export for people: previews, validation, turntables, six views, metrics of held-out photographs, the mesh.

Everything here runs without gradients; the trainer puts the averaged weights into the model before.
Of several processes only rank 0 renders and writes; the others get None, or no metrics.
"""

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf import provider
from nerf.config.stages import Stage
from nerf.core import cameras, images
from nerf.core.structs import RenderOutput, RenderSettings, Views, join_records
from nerf.data.image_prompt import KnownViews
from nerf.data.posed_images import Photographs
from nerf.mesh import export
from nerf.mesh.mesh import Mesh
from nerf.renderer import NeRFRenderer
from nerf.run import metrics
from nerf.run.checkpoint import run_name
from nerf.run.distributed import main_only
from nerf.run.logger import Report
from nerf.run.mesh_init import field_surface
from nerf.run.workspace import has_later_stage
from nerf.training.schedule import known_side
from nerf.training.sources import RunInfo

PREVIEW_SIZE = 128
PREVIEW_VIEWS = 4


class Evaluator:
    """Renders and exports a model.

    Args:
        stage: of the run, with its options; names of files after the first stage's carry its name.
        model: renders.
        report: where log lines, scalars and ``result.json`` go.
        held_out: held-out photographs by split ("val", "test"); empty for text.
        known: the views of image prompts, where there are some.
    """

    def __init__(
        self,
        stage: Stage,
        model: NeRFRenderer,
        report: Report,
        held_out: dict[str, Photographs] | None = None,
        known: KnownViews | None = None,
    ):
        self.stage, self.model, self.report = stage, model, report
        self.config = stage.config
        self.held_out, self.known = held_out or {}, known
        self.device = next(model.parameters()).device
        self.workspace = Path(self.config.output.workspace)

    def settings(self) -> RenderSettings:
        """Render settings of evaluation: plain albedo, or view-dependent colour over the background of the photographs."""
        photos = next(iter(self.held_out.values()), None)
        background = None if photos is None else photos.background
        return RenderSettings(training=False, background=background, view_dependent=self.config.data.data is not None)

    @torch.no_grad()
    def render(self, views: Views, settings: RenderSettings | None = None) -> RenderOutput:
        """Render whole views [B], one at a time; the random numbers of training are not touched."""
        settings = settings or self.settings()
        outputs = [self.model.render(cameras.view_rays(views[i].to(self.device)), settings) for i in range(len(views))]
        if len(outputs) == 1:
            return outputs[0]
        return replace(join_records(outputs, torch.cat), shape=(len(views), views.height, views.width))

    @main_only(lambda: None)
    def show_guidance(self, debug: dict[str, Tensor], step: int) -> Path | None:
        """Write ``guidance/step_#######.png``: a row of views for each name -> [B, 3, H, W] of ``debug``."""
        rows = [picture.permute(1, 2, 0) for pictures in debug.values() for picture in pictures.float().cpu().clamp(0, 1)]
        captions = [name for name, pictures in debug.items() for _ in pictures]
        sheet = images.contact_sheet(rows, columns=len(next(iter(debug.values()))), captions=captions)
        return images.write_png(self.workspace / "guidance" / f"step_{step:07d}.png", sheet)

    @main_only(lambda: None)
    def preview(self, step: int) -> Path | None:
        """Four small views side by side, ``validation/df_step_########_preview.png``."""
        size = min(PREVIEW_SIZE, self.config.output.H)
        out = self.render(self._show_views(PREVIEW_VIEWS, size, size))
        path = self.workspace / "validation" / f"{run_name(step, self.stage.name)}_preview.png"
        images.write_png(path, np.concatenate(list(_pictures(out)), axis=1))
        return path

    @main_only(dict)
    def validate(self, step: int) -> dict[str, float]:
        """Write validation pictures; returns PSNR and SSIM of photographs that were held out, or of image prompts."""
        if self.held_out:
            return self._measure("val" if "val" in self.held_out else "test", step)
        output = self.config.output
        views = self._show_views(output.dataset_size_valid, output.H, output.W)
        for i in range(len(views)):
            self._write_frame("validation", f"{run_name(step, self.stage.name)}_{i + 1:04d}", self.render(views[i]))
        return self._measure_known(step)

    @main_only(dict)
    def test(self, step: int) -> dict[str, float]:
        """Write the turntable (or the six views) to ``results/``; returns the metrics of held-out photographs."""
        output = self.config.output
        name = run_name(step, self.stage.name)
        if output.six_views:
            views = provider.six_views(self.config, output.H, output.W)
            for i in range(len(views)):
                self._write_frame("results", f"{name}_{i:04d}", self.render(views[i]))
            self.report.log(f"wrote {len(views)} views, {self.workspace / 'results' / name}_0000_rgb.png and so on")
        else:
            self._write_turntable(name)
        return self._measure("test", step) if "test" in self.held_out else self._measure_known(step)

    @main_only(lambda: None)
    def save_mesh(self, run: RunInfo) -> export.ExportReport | None:
        """Extract the surface (or take that of the mesh stage), clean, unwrap, bake and write it to ``mesh/``.

        A stage that is exported again after a later one has run writes to ``mesh_<stage>/``. The folder is replaced as a whole,
        so that all files of the program there belong to one mesh; other files in it are kept.
        """
        output, surface = self.config.output, self.model.surface()
        shown_again = has_later_stage(self.workspace, self.stage.name)
        said = {} if self.config.prompt.text is None else {"prompt": self.config.prompt.text}
        common = dict(
            albedo=self.model.albedo,
            bound=self.model.bound,
            folder=self.workspace / (f"mesh_{self.stage.name}" if shown_again else "mesh"),
            options=export.ExportOptions.from_config(output),
            transform=run.transform,
            metadata=said | {"seed": self.config.runtime.seed, "stage": self.stage.name} | run.notes,
            report=self.report.log,
            device=self.device,
        )
        if surface is None:
            report = export.export_level_set(field_surface(self.model, output.mesh_threshold), **common)
        else:
            mesh = Mesh(surface.vertices.cpu().numpy(), surface.faces.cpu().numpy())
            report = export.export_surface(mesh, **common)
        self.report.log(f"mesh: {report}")
        for note in report.notes:
            self.report.log(f"mesh: {note}")
        return report

    # ---- parts of the above ---------------------------------------------------------------------------------------

    def _show_views(self, count: int, height: int, width: int) -> Views:
        """The views to show: a turntable, or a smooth path past the cameras of the photographs."""
        photos = self.held_out.get("test") or self.held_out.get("val")
        if photos is None:
            return provider.turntable(self.config, count, height, width)
        return photos.camera_path(count, height, width)

    def _write_turntable(self, name: str) -> None:
        output = self.config.output
        views = self._show_views(output.dataset_size_test, output.H, output.W)
        rgb, depth = [], []
        for i in range(len(views)):
            out = self.render(views[i])
            rgb.append(_pictures(out)[0])
            depth.append(images.depth_image(out.depth, out.opacity, (views.height, views.width)))
        for kind, frames in (("rgb", rgb), ("depth", depth)):
            path = images.write_video(self.workspace / "results" / f"{name}_{kind}.mp4", np.stack(frames), fps=25)
            self.report.log(f"wrote {path}")
        sheet = images.contact_sheet(rgb[:: max(len(rgb) // 8, 1)][:8], columns=4)
        images.write_png(self.workspace / "results" / f"{name}_sheet.png", sheet)

    def _write_frame(self, folder: str, name: str, out: RenderOutput) -> None:
        base = self.workspace / folder
        shape = out.image_shape[1:]
        images.write_png(base / f"{name}_rgb.png", _pictures(out)[0])
        images.write_png(base / f"{name}_depth.png", images.depth_image(out.depth, out.opacity, shape))

    def _measure(self, split: str, step: int) -> dict[str, float]:
        """PSNR and SSIM of a held-out split over its valid pixels; a few renders are written beside the photographs."""
        photos = self.held_out[split]
        rows = []
        for i in range(len(photos)):
            batch, valid = photos.eval_batch(i, undistorted=self.stage.kind.photo_layout == "image")
            assert batch.views is not None and batch.rgb is not None, "a photograph has a camera and colours"
            out = self.render(batch.views, batch.settings(self.settings()))
            shape = out.image_shape[1:]
            image, truth = (colour.reshape(*shape, 3) for colour in (out.image.clamp(0, 1), batch.rgb.to(self.device)))
            valid = None if valid is None else valid.reshape(shape)
            rows.append((metrics.psnr(image, truth, valid), metrics.ssim(image, truth, valid)))
            self._write_pair(f"{run_name(step, self.stage.name)}_{split}", i, image, truth)
        return self._report_measures(split, step, rows)

    def _measure_known(self, step: int) -> dict[str, float]:
        """PSNR and SSIM of the views of image prompts, over the pixels of the object: those of the picture or the render."""
        if self.known is None:
            return {}
        rows = []
        for i in range(len(self.known)):
            batch = self.known.eval_batch(i, known_side(self.config))
            assert batch.views is not None and batch.rgb is not None and batch.mask is not None, "the picture has all of them"
            out = self.render(batch.views, batch.settings(self.settings()))
            shape = out.image_shape[1:]
            image, truth = (colour.reshape(*shape, 3) for colour in (out.image.clamp(0, 1), batch.rgb))
            valid = ((out.opacity > 0.5) | (batch.mask > 0.5)).reshape(shape)
            rows.append((metrics.psnr(image, truth, valid), metrics.ssim(image, truth, valid)))
            self._write_pair(f"{run_name(step, self.stage.name)}_image", i, image, truth)
        return self._report_measures("image", step, rows)

    def _write_pair(self, name: str, i: int, image: Tensor, truth: Tensor) -> None:
        """Write the first few renders [H, W, 3] beside what they are compared with."""
        if i < PREVIEW_VIEWS:
            pair = np.concatenate([images.to_uint8(image), images.to_uint8(truth)], axis=1)
            images.write_png(self.workspace / "validation" / f"{name}_{i:04d}.png", pair)

    def _report_measures(self, split: str, step: int, rows: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
        """The means of PSNR and SSIM over some views, logged."""
        psnr, ssim = (float(np.nanmean([float(row[k]) for row in rows])) for k in (0, 1))
        found = {f"{split}_psnr": psnr, f"{split}_ssim": ssim}
        self.report.metrics(step, found)
        return found


def _pictures(out: RenderOutput) -> np.ndarray:
    """The rendered views as uint8 [B, H, W, 3]."""
    return images.to_uint8(out.image.reshape(*out.image_shape, 3))
