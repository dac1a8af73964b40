"""Rendering and export for people: previews, validation, turntables, six views, metrics of held-out photographs, the mesh.

Everything here runs without gradients; the trainer puts the averaged weights into the model before.
Of several processes only rank 0 renders and writes; the others get None, or no metrics.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nerf import provider
from nerf.config.stages import Stage
from nerf.core import cameras, images
from nerf.core.errors import ExportError
from nerf.core.memory import explained
from nerf.core.progress import track
from nerf.core.structs import Batch, RenderOutput, RenderSettings, Views, join_records
from nerf.data.camera_path import DEFAULT_FPS, CameraPath, SceneCameras, read_camera_path
from nerf.data.image_prompt import KnownViews
from nerf.data.posed_images import Photographs
from nerf.mesh import export
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.level_set_grid import PROBE_CELLS
from nerf.mesh.paint import export_painted
from nerf.mesh.photo_colors import Photo
from nerf.renderer import NeRFRenderer
from nerf.run import half_images, hallucination, lights, lpips, mesh_evaluation, metrics, showing
from nerf.run.distributed import main_only
from nerf.run.finished import Finisher
from nerf.run.logger import AfterTraining, Report
from nerf.run.workspace import has_later_stage
from nerf.training.schedule import known_side
from nerf.training.sources import RunInfo

Row = tuple[Tensor, Tensor, Tensor]  # PSNR and SSIM of a view, and its mean opacity

PREVIEW_SIZE = 128
PREVIEW_VIEWS = 4
CPU_PIXELS = 20_000_000  # of held-out photographs that are measured on a CPU: a view of 1600x1200 takes 15 s of two cores
QUERY_PROBE = 1 << 13  # points at which the field is timed, for the time left
QUERIES_PER_CELL = 24  # of an export: evaluations of the field for each of the resolution^2 cells that a surface crosses
TRIANGLE_SECONDS = 2e-4  # of an export, for each triangle that is kept: decimation, unwrapping, writing and reading back


class Evaluator:
    """Renders and exports a model.

    Args:
        stage: of the run, with its options; names of files after the first stage's carry its name.
        model: renders.
        report: where log lines, scalars and ``result.json`` go.
        held_out: held-out photographs by split ("val", "test"); empty for text.
        known: the views of image prompts, where there are some.
        scene_cameras: those of photographs, which videos pass; None: videos go around the object.

    Raises:
        UserError: the file of ``--camera_path`` is broken.
    """

    def __init__(
        self,
        stage: Stage,
        model: NeRFRenderer,
        report: Report,
        held_out: dict[str, Photographs] | None = None,
        known: KnownViews | None = None,
        scene_cameras: SceneCameras | None = None,
    ):
        self.stage, self.model, self.report = stage, model, report
        self._finisher, self._shown_model = Finisher(), model  # pictures for people are of the latter
        self.config = stage.config
        self.held_out, self.known = held_out or {}, known
        self.scene_cameras, output = scene_cameras, self.config.output
        to_source = None if scene_cameras is None else scene_cameras.to_source
        self.own_path = (
            None if output.camera_path is None else read_camera_path(output.camera_path, to_source, output.H, output.W)
        )
        self.device = next(model.parameters()).device
        self.workspace = Path(self.config.output.workspace)
        self.is_object = showing.is_shown_as_object(self.config)
        self.lit = self.is_object and not self.config.output.unlit
        self._pixel_seconds: float | None = None  # of the newest views
        self._query_seconds: float | None = None  # of a point
        self._pictures = lights.find_pictures(self.config.lights.hallucinate)
        if self._pictures:
            lights.check(model, self._pictures)
        self._test_psnr: float | None = None  # of the field at the held-out photographs, once it was measured

    def settings(self) -> RenderSettings:
        """Render settings of evaluation: plain albedo, or view-dependent colour over the background of the photographs."""
        photos = next(iter(self.held_out.values()), None)
        background = None if photos is None else photos.background
        return RenderSettings(training=False, background=background, view_dependent=self.config.data.data is not None)

    def shown_settings(self) -> RenderSettings:
        """Render settings of pictures for people, with normals where these cost nothing; see :meth:`_shown`."""
        return replace(self.settings(), need_normals=self.lit and self.stage.kind.triangles)

    def render(self, views: Views, settings: RenderSettings | None = None) -> RenderOutput:
        """Render whole views [B], one at a time; the random numbers of training are not touched."""
        return self._render(self.model, views, settings or self.settings())

    def _show(self, views: Views, settings: RenderSettings | None = None) -> RenderOutput:
        """:meth:`render` for pictures that people look at, of the surface that :meth:`_as_delivered` chose."""
        return self._render(self._shown_model, views, settings or self.shown_settings())

    @torch.no_grad()
    def _render(self, model: NeRFRenderer, views: Views, settings: RenderSettings) -> RenderOutput:
        began = time.monotonic()
        with explained("rendering a view", f"lower {self.stage.kind.render_memory}"):
            outputs = [model.render(cameras.view_rays(views[i].to(self.device)), settings) for i in range(len(views))]
            out = outputs[0]
            if len(outputs) > 1:
                out = replace(join_records(outputs, torch.cat), shape=(len(views), views.height, views.width))
        out.image.sum().item()  # waits for a GPU
        self._pixel_seconds = (time.monotonic() - began) / (len(views) * views.height * views.width)
        return out

    # ---- the time that is left ------------------------------------------------------------------------------------

    def after_training(self) -> AfterTraining | None:
        """How long the videos, the measuring and the mesh at the end will take; None before a view was rendered."""
        if self._pixel_seconds is None:
            return None
        output = self.config.output
        count, frame = output.dataset_size_test, output.H * output.W
        if self.own_path is not None:
            views = self.own_path.views
            count, frame = len(views), views.height * views.width
        pixels = len(provider.SIX_VIEWS) * output.H * output.W if output.six_views else count * frame
        pixels += len(self._pictures) * (count + self.config.lights.light_walk) * frame
        if "test" in self.held_out:
            photos = self.held_out["test"]
            often = 1 if self.model.appearance is None else 1 + len(half_images.LIGHTS)
            pixels += often * sum(math.prod(photos.store.size(i)) for i in self._measured("test"))
        seconds = pixels * self._pixel_seconds + (self._mesh_seconds() if output.save_mesh else 0.0)
        return AfterTraining(seconds, complete=self.stage.name == self.config.stages[-1])  # else another stage trains

    def _mesh_seconds(self) -> float:
        """An estimate of the duration of an export from the time that a point takes."""
        if self._query_seconds is None:
            own = torch.Generator()  # the random numbers of training stay as they are
            points = torch.rand(QUERY_PROBE, 3, generator=own) * 2 - 1
            points = points.to(self.device) * self.model.bound
            began = time.monotonic()
            self.model.albedo(points).sum().item()
            self._query_seconds = (time.monotonic() - began) / QUERY_PROBE
        output = self.config.output
        texels = (output.texture_size * output.texture_supersample) ** 2
        queries = PROBE_CELLS**3 + QUERIES_PER_CELL * output.mcubes_resolution**2 + texels
        if self.stage.kind.triangles:
            queries = texels
        most = QUERIES_PER_CELL * output.mcubes_resolution**2
        triangles = min(output.decimate_target, most) if output.decimate_target > 0 else most
        return queries * self._query_seconds + TRIANGLE_SECONDS * triangles

    @main_only(lambda: None)
    def show_guidance(self, debug: dict[str, Tensor], step: int) -> Path | None:
        """Write ``guidance/step_#######.png``: a row of views for each name -> [B, 3, H, W] of ``debug``."""
        rows = [picture.permute(1, 2, 0) for pictures in debug.values() for picture in pictures.float().cpu().clamp(0, 1)]
        captions = [name for name, pictures in debug.items() for _ in pictures]
        sheet = images.contact_sheet(rows, columns=len(next(iter(debug.values()))), captions=captions)
        return images.write_png(self.workspace / "guidance" / f"step_{step:07d}.png", sheet)

    @main_only(lambda: None)
    def preview(self, step: int) -> Path | None:
        """Four small views side by side, ``validation/df_step_########_preview.png``; the last of an object is from below."""
        size = min(PREVIEW_SIZE, self.config.output.H)
        if self.is_object:
            views = self._framed(showing.preview_views(self.config, PREVIEW_VIEWS, size, size))
        else:
            views = self.show_views(PREVIEW_VIEWS, size, size)
        path = self.workspace / "validation" / f"{self.stage.kind.run_name(step)}_preview.png"
        pictures = self._shown(self._show(views), views)
        images.write_png(path, np.concatenate(list(pictures), axis=1))
        return path

    @main_only(dict)
    def validate(self, step: int) -> dict[str, float]:
        """Write validation pictures; returns PSNR and SSIM of photographs that were held out, or of image prompts."""
        if self.held_out:
            split = "val" if "val" in self.held_out else "test"
            return self._measure(split, step, provider.evenly(len(self.held_out[split]), self.config.output.dataset_size_valid))
        output = self.config.output
        views = self.show_views(output.dataset_size_valid, output.H, output.W)
        for i in track(range(len(views)), "rendering validation views"):
            self._write_frame("validation", f"{self.stage.kind.run_name(step)}_{i + 1:04d}", views[i])
        return self._measure_known(step)

    @main_only(dict)
    def test(self, step: int, run: RunInfo) -> dict[str, float]:
        """Write the turntable (or the six views) to ``results/``; returns the metrics of held-out photographs.

        Pictures of a mesh stage show the surface as :meth:`save_mesh` writes it, if the run does; what is measured is the
        surface that was trained.
        """
        output = self.config.output
        name = self.stage.kind.run_name(step)
        with self._as_delivered(run):
            if output.six_views:
                self._write_six_views(name)
            else:
                with explained("making the video", "lower --dataset_size_test, or --W and --H"):
                    self._write_turntable(name)
            if self._pictures:
                self._hallucinate(name)
        if "test" not in self.held_out:
            return self._measure_known(step)
        measured = self._measure_test(step)
        if self.model.appearance is not None:
            self._measure_halves(step)
        return measured

    @main_only(lambda: None)
    def save_mesh(self, run: RunInfo, photos: Sequence[Callable[[], Photo]] = ()) -> export.ExportReport | None:
        """Extract the surface (or take that of the mesh stage), clean, unwrap, bake and write it to ``mesh/``.

        A stage that is exported again after a later one has run writes to ``mesh_<stage>/``. The folder is replaced as a whole,
        so that all files of the program there belong to one mesh; other files in it are kept.
        """
        output, painted = self.config.output, self.model.path.painted()
        shown_again = has_later_stage(self.workspace, self.stage.name)
        said = {} if self.config.prompt.text is None else {"prompt": self.config.prompt.text}
        options = self._export_options()
        common = dict(
            albedo=self.model.albedo,
            bound=self.model.path.surface_extent(self.model.bound, output.mesh_threshold),
            folder=self.workspace / (f"mesh_{self.stage.name}" if shown_again else "mesh"),
            options=options,
            transform=run.transform,
            metadata=said | {"seed": self.config.runtime.seed, "stage": self.stage.name} | run.notes,
            report=self.report.log,
            device=self.device,
        )
        if painted is not None:
            if options.crop is not None:
                self.report.log("--mesh_crop has no effect: a mesh that is painted keeps all of its triangles")
            if options.ground:
                self.report.log("--ground has no effect: a mesh that is painted keeps its place")
            report = export_painted(*painted, **common)
        else:
            common |= {"photos": photos if self._shows_photographs() else ()}
            if (surface := self._finisher.surface(self.model, options, run.transform)) is None:
                report = export.export_level_set(self.model.level_set(output.mesh_threshold), **common)
            else:
                report = export.export_surface(surface, **common)
        self.report.log(f"mesh: {report}")
        for note in report.notes:
            self.report.log(f"mesh: {note}")
        if self.config.mesh.eval_mesh and "test" in self.held_out:
            self._measure_mesh(report.files["glb"])
        return report

    def _measure_mesh(self, path: Path) -> None:
        """Compare the written mesh with the held-out photographs; the figures go to ``result.json`` and to the log."""
        photos, chosen = self.held_out["test"], self._measured("test")
        pictures = self.workspace / "validation" / f"{self.stage.kind.name}_mesh"
        found = mesh_evaluation.measure(path, photos, chosen, self.config.render.min_near, self.model.bound, pictures)
        self.report.log(mesh_evaluation.line_of(found, len(chosen), self._test_psnr))
        self.report.result(**found)

    # ---- parts of the above ---------------------------------------------------------------------------------------

    def _export_options(self) -> ExportOptions:
        """Those of the stage."""
        options = ExportOptions.from_config(self.config.output, self.config.mesh, self.config.camera)
        if self.config.from_mesh_file and self.config.data.data is None:
            options = replace(options, export_frame="source")  # the axes of that file
        return options

    @contextmanager
    def _as_delivered(self, run: RunInfo) -> Iterator[None]:
        """Within this block pictures show the surface of a mesh stage as its files have it, if the run writes them."""
        try:
            if self.config.output.save_mesh:
                self._shown_model = self._finisher.model(self.model, self._export_options(), run.transform)
        except ExportError as error:
            self.report.log(f"pictures show the surface as it was trained, as it cannot be exported: {error}")
        try:
            yield
        finally:
            self._shown_model = self.model

    def _shows_photographs(self) -> bool:
        """Whether the photographs are projected onto the mesh for its texture; those of one light, unless it is asked for."""
        wanted = self.config.mesh.texture_from
        return wanted == "photographs" or (wanted == "auto" and not self.config.prompt.kinds and not self.config.wild.adapts)

    def show_views(self, count: int, height: int, width: int) -> Views:
        """The views to show: a turntable, or a smooth path past the cameras of the photographs."""
        if self.scene_cameras is None:
            return self._framed(showing.turntable(self.config, count, height, width))
        return self.scene_cameras.path(count, height, width)

    def _path(self) -> CameraPath:
        """That of the video."""
        output = self.config.output
        return self.own_path or CameraPath(self.show_views(output.dataset_size_test, output.H, output.W), DEFAULT_FPS)

    def _hallucinate(self, name: str) -> None:
        """Show the scene in the light of the pictures of ``--hallucinate``."""
        found = lights.lights_of(self.model, self._pictures)
        self.report.log(lights.summary(found))
        folder, frames = self.workspace / "results", self.config.lights.light_walk
        with explained("making the videos", "lower --dataset_size_test, or --W and --H"):
            hallucination.write(found, self._path(), self._show, self.settings(), folder, name, frames, self.report.log)

    def _measure_halves(self, step: int) -> None:
        """Compare held-out photographs in their own light; see :mod:`nerf.run.half_images`."""
        photos, chosen = self.held_out["test"], self._measured("test")

        def light(batch: Batch, seen: Tensor, valid: Tensor | None) -> Tensor:
            return lights.of_part(self.model, batch, seen, valid, batch.settings(self.settings()))

        def render(batch: Batch, vector: Tensor) -> Tensor:
            assert batch.views is not None, "a photograph has a camera"
            return self.render(batch.views, replace(batch.settings(self.settings()), appearance=vector)).image

        judge = half_images.Judge(photos.eval_batch, light, render, lpips.find(self.device))
        if judge.perceptual is None:
            self.report.log("LPIPS is left out: its weights (of torchvision's AlexNet and the package lpips) are not here")
        found = half_images.measure(judge, chosen, self.workspace / "validation" / f"{self.stage.kind.run_name(step)}_light")
        for line in half_images.table(found):
            self.report.log(line)
        self.report.result(wild=found)

    def _write_six_views(self, name: str) -> None:
        output = self.config.output
        views = provider.six_views(self.config, output.H, output.W)
        views = self._framed(views) if self.is_object else views
        for i in track(range(len(views)), "rendering six views"):
            self._write_frame("results", f"{name}_{i:04d}", views[i])
        self.report.log(f"wrote {len(views)} views, {self.workspace / 'results' / name}_0000_rgb.png and so on")

    def _write_turntable(self, name: str) -> None:
        path = self._path()
        views = path.views
        asked = self.config.output.videos
        shown: dict[str, list[np.ndarray]] = {kind: [] for kind in dict.fromkeys(("rgb", *asked))}
        settings = self.shown_settings()
        settings = replace(settings, need_normals=settings.need_normals or "normal" in asked)
        for i in track(range(len(views)), "rendering the video"):
            out = self._show(views[i], settings)
            for kind, frames in shown.items():
                frames.append(self._shown(out, views[i])[0] if kind == "rgb" else _frame(kind, out, views[i]))
        for kind in asked:
            frames = shown[kind]
            file = images.write_video(self.workspace / "results" / f"{name}_{kind}.mp4", np.stack(frames), fps=path.fps)
            self.report.log(f"wrote {file}")
        if self.is_object and self.own_path is None:
            self._write_sheet(name)
            return
        rgb = shown["rgb"]
        sheet = images.contact_sheet(rgb[:: max(len(rgb) // 8, 1)][:8], columns=4)
        images.write_png(self.workspace / "results" / f"{name}_sheet.png", sheet)

    def _write_sheet(self, name: str) -> None:
        """Write the object from above and from below, ``<name>_sheet.png``; lit, and ``<name>_sheet_unlit.png`` beside it."""
        output = self.config.output
        views = self._framed(showing.sheet_views(self.config, output.H, output.W))
        outs = [self._show(views[i]) for i in track(range(len(views)), "rendering the contact sheet")]
        sheets = {"sheet": [self._shown(out, views[i])[0] for i, out in enumerate(outs)]}
        if self.lit:
            sheets["sheet_unlit"] = [_pictures(out)[0] for out in outs]
        for kind, pictures in sheets.items():
            sheet = images.contact_sheet(pictures, columns=showing.SHEET_COLUMNS)
            images.write_png(self.workspace / "results" / f"{name}_{kind}.png", sheet)

    def _framed(self, views: Views) -> Views:
        """The views with the object in their frame."""
        surface = self._shown_model.surface()
        points = showing.seen_points(self.config, self.render) if surface is None else surface.vertices[surface.faces.unique()]
        return showing.framed(views, points.cpu())

    def _shown(self, out: RenderOutput, views: Views) -> np.ndarray:
        """Rendered views as people see them, uint8 [B, H, W, 3]: lit, unless the light is in the photographs."""
        if not self.lit:
            return _pictures(out)
        return _pictures(replace(out, image=showing.lit(out, showing.normals(out, views), views)))

    def _write_frame(self, folder: str, name: str, view: Views) -> None:
        base, out = self.workspace / folder, self._show(view)
        shape = out.image_shape[1:]
        images.write_png(base / f"{name}_rgb.png", self._shown(out, view)[0])
        images.write_png(base / f"{name}_depth.png", _depth_picture(out, shape))

    def _measured(self, split: str) -> list[int]:
        """Which held-out photographs the figures at the end are of."""
        photos, most = self.held_out[split], self.config.output.eval_views
        if most is None:
            pixels = sum(math.prod(photos.store.size(i)) for i in range(len(photos)))
            fits = self.device.type != "cpu" or pixels <= CPU_PIXELS
            most = 0 if fits else max(1, CPU_PIXELS * len(photos) // pixels)
        return provider.evenly(len(photos), most)

    def _measure_test(self, step: int) -> dict[str, float]:
        """The figures at the end, and how many of the held-out photographs they are of."""
        chosen, count = self._measured("test"), len(self.held_out["test"])
        if len(chosen) < count:
            self.report.log(f"measuring {len(chosen)} of {count} held-out photographs, evenly chosen; --eval_views 0 takes all")
        found = self._measure("test", step, chosen)
        self._test_psnr = found["test_psnr"]
        return found | {"test_views": len(chosen), "test_photographs": count}

    def _measure(self, split: str, step: int, chosen: Sequence[int]) -> dict[str, float]:
        """PSNR and SSIM of held-out photographs over their valid pixels, and the mean opacity of opaque ones."""
        photos = self.held_out[split]
        rows: list[Row] = []
        for i in track(chosen, "measuring held-out photographs"):
            batch, valid = photos.eval_batch(i, undistorted=self.stage.kind.photo_layout == "image")
            assert batch.views is not None, "a photograph has a camera"
            out = self.render(batch.views, batch.settings(self.settings()))
            self._compare(i, out, batch, valid, rows, f"{self.stage.kind.run_name(step)}_{split}")
        return self._report_measures(split, step, rows, opaque=photos.background is None)

    def _measure_known(self, step: int) -> dict[str, float]:
        """PSNR and SSIM of the views of image prompts, over the pixels of the object: those of the picture or the render."""
        if self.known is None:
            return {}
        rows: list[Row] = []
        for i in track(range(len(self.known)), "measuring the views of image prompts"):
            batch = self.known.eval_batch(i, known_side(self.config))
            assert batch.views is not None and batch.mask is not None, "the picture has both"
            out = self.render(batch.views, batch.settings(self.settings()))
            valid = (out.opacity > 0.5) | (batch.mask > 0.5)
            self._compare(i, out, batch, valid, rows, f"{self.stage.kind.run_name(step)}_image")
        return self._report_measures("image", step, rows)

    def _compare(self, i: int, out: RenderOutput, batch: Batch, valid: Tensor | None, rows: list[Row], name: str) -> None:
        """Add PSNR and SSIM of render ``i`` over its valid pixels [N] to ``rows``; write the first few beside the truth."""
        assert batch.rgb is not None, "what is measured has colours"
        shape = out.image_shape[1:]
        image, truth = (colour.reshape(*shape, 3) for colour in (out.image.clamp(0, 1), batch.rgb.to(self.device)))
        valid = None if valid is None else valid.reshape(shape)
        if len(rows) < PREVIEW_VIEWS:
            pair = np.concatenate([images.to_uint8(image), images.to_uint8(truth)], axis=1)
            images.write_png(self.workspace / "validation" / f"{name}_{i:04d}.png", pair)
        opacity = out.whole[0].reshape(shape)
        opacity = opacity.mean() if valid is None else opacity[valid].mean()
        rows.append((metrics.psnr(image, truth, valid), metrics.ssim(image, truth, valid), opacity))

    def _report_measures(self, split: str, step: int, rows: list[Row], opaque: bool = False) -> dict[str, float]:
        """The means of PSNR and SSIM over some views, and of the opacity where the views are ``opaque``; logged."""
        psnr, ssim, opacity = (float(np.nanmean([float(row[k]) for row in rows])) for k in range(3))
        found = {f"{split}_psnr": psnr, f"{split}_ssim": ssim}
        if opaque:
            found[f"{split}_opacity"] = opacity
        self.report.metrics(step, found)
        return found


def _depth_picture(out: RenderOutput, shape: tuple[int, int]) -> np.ndarray:
    """Colours of the depth of one view, uint8 [H, W, 3], that of a background with depth included."""
    opacity, depth = out.whole
    return images.depth_image(depth, opacity, shape)


def _frame(kind: str, out: RenderOutput, view: Views) -> np.ndarray:
    """One frame [H, W, 3] uint8 of a video: the unlit view, its depth, or its normals in the axes of the camera."""
    if kind == "albedo":
        return _pictures(out)[0]
    if kind == "depth":
        return _depth_picture(out, (view.height, view.width))
    assert out.normal is not None, "asked for in the settings"
    local = out.normal @ view.pose[0, :3, :3].to(out.normal)  # to the axes of the camera: x right, y up, z towards it
    color = 0.5 * local + 0.5 * out.opacity[:, None] + (1.0 - out.opacity[:, None])
    return images.to_uint8(color.reshape(view.height, view.width, 3))


def _pictures(out: RenderOutput) -> np.ndarray:
    """The rendered views as uint8 [B, H, W, 3]."""
    return images.to_uint8(out.image.reshape(*out.image_shape, 3))
