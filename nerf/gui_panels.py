"""The widgets of the window: what they show of a session and a view, and what they ask of them. See ``nerf/gui.py``."""

import tempfile
import time
from pathlib import Path
from typing import Any

from nerf.core.structs import SHADINGS
from nerf.viewer.camera import MAX_FOVY, MIN_FOVY
from nerf.viewer.frames import Frame
from nerf.viewer.session import Session
from nerf.viewer.settings import MODES, Crop, ViewSettings
from nerf.viewer.status import Phase, Status
from nerf.viewer.view import View

PANEL_WIDTH, STATUS_HEIGHT = 352, 32  # pixels of the panel and of the line below the scene
FONT_SIZE = 16
LABEL = 108  # pixels of a label before its widget
LINES = 60  # of messages that are shown
MOST_SPP = 64  # of the slider; more can be typed
# Fonts with more than the English letters, where a system has one; Pillow's own has those.
FONTS = (
    "/usr/share/fonts/truetype/dejavu/DejaVuSans.ttf",
    "/usr/share/fonts/TTF/DejaVuSans.ttf",
    "/usr/share/fonts/dejavu-sans-fonts/DejaVuSans.ttf",
    "/System/Library/Fonts/Supplemental/Arial Unicode.ttf",
    "C:/Windows/Fonts/segoeui.ttf",
)
TEXT, FAINT, ACCENT = (226, 228, 233), (146, 151, 163), (86, 138, 242)
GROUND, SURFACE, FIELD = (24, 26, 31), (32, 35, 42), (46, 50, 60)
GOOD, WAITS, BAD = (104, 196, 126), (233, 187, 92), (236, 104, 98)
COLORS = {
    Phase.TRAINING: GOOD,
    Phase.PAUSED: WAITS,
    Phase.RESULTS: ACCENT,
    Phase.SHOWING: FAINT,
    Phase.FAILED: BAD,
    Phase.CLOSED: FAINT,
}


def make_look(dpg: Any) -> None:
    """Font and colours of all windows."""
    with dpg.font_registry():
        dpg.bind_font(dpg.add_font(_font_file(), FONT_SIZE))
    with dpg.theme() as theme, dpg.theme_component(dpg.mvAll):
        colors = {
            dpg.mvThemeCol_WindowBg: GROUND,
            dpg.mvThemeCol_ChildBg: SURFACE,
            dpg.mvThemeCol_PopupBg: SURFACE,
            dpg.mvThemeCol_Text: TEXT,
            dpg.mvThemeCol_TextDisabled: FAINT,
            dpg.mvThemeCol_FrameBg: FIELD,
            dpg.mvThemeCol_FrameBgHovered: (58, 63, 76),
            dpg.mvThemeCol_FrameBgActive: (66, 72, 88),
            dpg.mvThemeCol_Button: FIELD,
            dpg.mvThemeCol_ButtonHovered: (64, 92, 152),
            dpg.mvThemeCol_ButtonActive: ACCENT,
            dpg.mvThemeCol_Header: (40, 44, 53),
            dpg.mvThemeCol_HeaderHovered: (52, 58, 70),
            dpg.mvThemeCol_HeaderActive: (60, 66, 80),
            dpg.mvThemeCol_SliderGrab: ACCENT,
            dpg.mvThemeCol_SliderGrabActive: (130, 170, 255),
            dpg.mvThemeCol_CheckMark: ACCENT,
            dpg.mvThemeCol_Border: (46, 50, 60),
            dpg.mvThemeCol_TitleBgActive: (40, 44, 53),
            dpg.mvThemeCol_PlotHistogram: ACCENT,
        }
        for target, color in colors.items():
            dpg.add_theme_color(target, color)
        for style, values in (
            (dpg.mvStyleVar_FrameRounding, (4,)),
            (dpg.mvStyleVar_WindowPadding, (0, 0)),
            (dpg.mvStyleVar_ItemSpacing, (8, 5)),
            (dpg.mvStyleVar_FramePadding, (8, 4)),
            (dpg.mvStyleVar_ScrollbarSize, (11,)),
            (dpg.mvStyleVar_ChildBorderSize, (0,)),
            (dpg.mvStyleVar_WindowBorderSize, (0,)),
        ):
            dpg.add_theme_style(style, *values)
    dpg.bind_theme(theme)


def _font_file() -> str:
    """A font of the system, or that of Pillow."""
    found = next((path for path in FONTS if Path(path).is_file()), None)
    if found is not None:
        return found
    from PIL import ImageFont

    font: Any = ImageFont.load_default(FONT_SIZE)
    with tempfile.NamedTemporaryFile(suffix=".ttf", delete=False) as file:
        file.write(font.font_bytes)
    return file.name


class Panels:
    """All widgets.

    Args:
        dpg: the module of DearPyGui.
        session: shown and commanded.
        view: of the scene.
    """

    def __init__(self, dpg: Any, session: Session, view: View):
        self.dpg, self.session, self.view = dpg, session, view
        self.first = view.request
        self.canvas = "scene"
        self._said = 0
        self._prompt: tuple[str | None, str] = (None, "")
        self._series: dict[str, Any] = {}
        self._rate = _Rate()

    def build(self, name: str) -> None:
        """Make the main window."""
        dpg = self.dpg
        with dpg.window(tag="main", label=name, no_scrollbar=True):
            with dpg.group(horizontal=True, horizontal_spacing=0):
                with dpg.group(tag="left"):
                    dpg.add_drawlist(64, 64, tag=self.canvas)
                    with dpg.child_window(tag="status line", height=STATUS_HEIGHT, no_scrollbar=True):
                        with dpg.group(horizontal=True, pos=(10, 5)):
                            dpg.add_text("", tag="status")
                            dpg.add_text("", tag="busy", color=ACCENT)
                            dpg.add_text("", tag="problem", color=BAD)
                with dpg.child_window(tag="panel", width=PANEL_WIDTH, border=False):
                    with dpg.child_window(tag="column", width=PANEL_WIDTH - 24, border=False, auto_resize_y=True, pos=(12, 8)):
                        self._run_panel()
                        self._prompt_panel()
                        self._view_panel()
                        self._crop_panel()
                        self._losses_panel()
                        self._messages_panel()
        dpg.set_primary_window("main", True)
        with dpg.theme() as close_together, dpg.theme_component(dpg.mvAll):
            dpg.add_theme_style(dpg.mvStyleVar_ItemSpacing, 0, 0)
        dpg.bind_item_theme("left", close_together)
        self._confirm_window()

    def resize(self, width: int, height: int) -> None:
        """Fit the scene and what is around it."""
        dpg = self.dpg
        dpg.configure_item(self.canvas, width=width, height=height)
        dpg.configure_item("status line", width=width)
        dpg.configure_item("panel", height=height + STATUS_HEIGHT)
        dpg.configure_item("confirm", pos=(max(width // 2 - 190, 0), max(height // 2 - 70, 0)))

    # ---- the parts --------------------------------------------------------------------------------------------------

    def _run_panel(self) -> None:
        dpg, status = self.dpg, self.session.status
        with dpg.group(horizontal=True):
            dpg.add_text("", tag="phase")
            dpg.add_text("", tag="stage", color=FAINT)
        dpg.add_progress_bar(tag="progress", width=-1, height=20)
        with dpg.group(horizontal=True):
            dpg.add_button(label="Stop", tag="go", width=152, callback=self._toggle, enabled=status.trains)
            dpg.add_button(label="Start over", tag="over", width=-1, callback=self._ask, enabled=status.trains)
        with dpg.group(horizontal=True):
            dpg.add_button(label="Save checkpoint", tag="save", width=152, callback=self.session.save)
            dpg.add_button(label="Export mesh", tag="export", width=-1, callback=self.session.export)
        if not status.trains:
            for tag in ("progress", "go", "over", "save"):
                dpg.hide_item(tag)
        dpg.add_text("", tag="times", color=FAINT)

    def _prompt_panel(self) -> None:
        dpg, status = self.dpg, self.session.status
        if status.prompt is None:
            return
        with dpg.collapsing_header(label="Prompt", default_open=True):
            dpg.add_input_text(tag="prompt", width=-1, on_enter=True, callback=self._edit, hint="a hamburger")
            dpg.add_input_text(tag="negative", width=-1, on_enter=True, callback=self._edit, hint="negative prompt")
            dpg.add_button(label="Use this prompt", tag="use prompt", width=-1, callback=self._edit)

    def _view_panel(self) -> None:
        dpg, shown, camera = self.dpg, self.first.settings, self.first.camera
        with dpg.collapsing_header(label="View", default_open=True):
            self._labelled("Mode", dpg.add_combo, "mode", items=list(MODES), default_value=shown.mode)
            self._labelled("Shading", dpg.add_combo, "shading", items=list(SHADINGS), default_value=shown.shading)
            self._slider("Light polar", "light_polar", shown.light_polar, 0.0, 180.0, "%.0f deg")
            self._slider("Light azimuth", "light_azimuth", shown.light_azimuth, -180.0, 180.0, "%.0f deg")
            self._slider("Ambient", "ambient", shown.ambient, 0.0, 1.0, "%.2f")
            with dpg.group(horizontal=True):
                self._label("Background")
                dpg.add_checkbox(label="own", tag="own_background", default_value=False, callback=self._settings_changed)
                dpg.add_color_edit(
                    (255, 255, 255), tag="background", no_alpha=True, no_inputs=True, callback=self._settings_changed
                )
            self._slider("Field of view", "fovy", camera.fovy, MIN_FOVY, MAX_FOVY, "%.1f deg")
            self._labelled(
                "Samples", dpg.add_slider_int, "max_spp", default_value=shown.max_spp, min_value=1,
                max_value=max(MOST_SPP, shown.max_spp), format="%d per pixel",
            )  # fmt: skip
            with dpg.group(horizontal=True):
                dpg.add_checkbox(
                    label="Dynamic resolution", tag="dynamic", default_value=True,
                    callback=lambda _, on: self.view.show(dynamic=on),
                )  # fmt: skip
                dpg.add_button(label="First camera", tag="first camera", width=-1, callback=self.first_camera)
            dpg.add_text("", tag="camera", color=FAINT)

    def _crop_panel(self) -> None:
        dpg, bound = self.dpg, self.session.bound
        with dpg.collapsing_header(label="Crop box", default_open=False):
            dpg.add_checkbox(label="Show only what is inside", tag="crop", callback=self._settings_changed)
            for tag, label, at in (("crop_low", "Low x, y, z", -bound), ("crop_high", "High x, y, z", bound)):
                self._labelled(
                    label, dpg.add_slider_floatx, tag, size=3, default_value=(at,) * 3, min_value=-bound, max_value=bound,
                    format="%.2f",
                )  # fmt: skip

    def _losses_panel(self) -> None:
        dpg = self.dpg
        if not self.session.status.trains:
            return
        with dpg.collapsing_header(label="Losses", default_open=True):
            with dpg.plot(tag="losses", height=170, width=-1, no_mouse_pos=True, no_menus=True):
                dpg.add_plot_legend(location=dpg.mvPlot_Location_NorthEast)
                dpg.add_plot_axis(dpg.mvXAxis, label="", tag="steps", auto_fit=True)
                dpg.add_plot_axis(dpg.mvYAxis, label="", tag="values", scale=dpg.mvPlotScale_Log10, auto_fit=True)

    def _messages_panel(self) -> None:
        with self.dpg.collapsing_header(label="Messages", default_open=True):
            self.dpg.add_child_window(tag="messages", height=130, width=-1)

    def _confirm_window(self) -> None:
        dpg = self.dpg
        with dpg.window(
            label="Start over?", tag="confirm", modal=True, show=False, no_resize=True, no_collapse=True, width=380, height=140
        ):
            with dpg.group(indent=12):
                dpg.add_spacer(height=4)
                dpg.add_text(
                    "This stage begins again from step 0. Its checkpoints are removed once the first new one is written.",
                    wrap=350,
                )
                with dpg.group(horizontal=True):
                    dpg.add_button(label="Start over", tag="confirmed", width=170, callback=self._start_over)
                    dpg.add_button(label="Go on", width=170, callback=lambda: dpg.hide_item("confirm"))

    def _label(self, text: str) -> None:
        self.dpg.add_text(text, color=FAINT)
        self.dpg.add_spacer(width=0)

    def _labelled(self, label: str, add: Any, tag: str, **options: Any) -> None:
        """A widget with its label before it."""
        dpg = self.dpg
        with dpg.group(horizontal=True, xoffset=LABEL):
            dpg.add_text(label, color=FAINT)
            add(tag=tag, width=-1, callback=self._settings_changed, **options)

    def _slider(self, label: str, tag: str, value: float, low: float, high: float, form: str) -> None:
        add, limits = self.dpg.add_slider_float, {"min_value": low, "max_value": high, "clamped": True}
        self._labelled(label, add, tag, default_value=value, format=form, **limits)

    # ---- what is shown ----------------------------------------------------------------------------------------------

    def show_status(self, frame: Frame | None) -> None:
        """Numbers, phases and messages as they are."""
        dpg, status = self.dpg, self.session.status
        dpg.set_value("phase", status.phase.value)
        dpg.configure_item("phase", color=COLORS[status.phase])
        dpg.set_value("stage", f"{status.stage}, step {status.step} of {status.total}")
        dpg.set_value("progress", min(status.step / max(status.total, 1), 1.0))
        dpg.configure_item("progress", overlay=f"{100 * status.step // max(status.total, 1)} %")
        dpg.configure_item("go", label="Stop" if self.session.running else "Start")
        dpg.set_value("times", self._times(status, frame))
        busy = status.busy or (f"{status.queued} to be done after the step" if status.queued else "")
        dpg.set_value("busy", busy)
        dpg.set_value("status", self._picture_text(frame))
        dpg.set_value("problem", self.view.error or status.error)
        self._show_prompt(status)
        self._show_camera()
        self._show_messages()

    def _times(self, status: Status, frame: Frame | None) -> str:
        train = f"step {1e3 * status.step_seconds:.0f} ms" if status.step_seconds else ""
        infer = "" if frame is None else f"frame {1e3 * frame.seconds:.0f} ms"
        return "   ".join(part for part in (train, infer) if part)

    def _picture_text(self, frame: Frame | None) -> str:
        if frame is None:
            return "rendering the first picture ..."
        h, w = frame.pixels.shape[:2]
        request = frame.request
        samples = f", {frame.samples} of {request.settings.max_spp} samples" if request.settings.max_spp > 1 else ""
        return f"{w} x {h} of {request.width} x {request.height}{samples}, step {frame.step}, {self._rate.text(frame.number)}"

    def _show_prompt(self, status: Status) -> None:
        """The prompt of the training, unless it is being edited."""
        now = (status.prompt, status.negative)
        if status.prompt is not None and now != self._prompt:
            self._prompt = now
            self.dpg.set_value("prompt", status.prompt)
            self.dpg.set_value("negative", status.negative)

    def _show_camera(self) -> None:
        camera = self.view.request.camera
        x, y, z = camera.target
        self.dpg.set_value(
            "camera",
            f"polar {camera.polar:.0f}, azimuth {camera.azimuth:.0f}, distance {camera.radius:.2f}\n"
            f"looks at {x:.2f}, {y:.2f}, {z:.2f}",
        )

    def _show_messages(self) -> None:
        dpg, new = self.dpg, self.session.messages(self._said)
        if not new:
            return
        self._said = new[-1].number
        for message in new:
            text = f"{time.strftime('%H:%M:%S', time.localtime(message.time))} {message.text}"
            dpg.add_text(text, parent="messages", wrap=PANEL_WIDTH - 52, color=BAD if message.error else TEXT)
        for old in dpg.get_item_children("messages", 1)[:-LINES]:
            dpg.delete_item(old)
        dpg.set_y_scroll("messages", -1.0)

    def show_losses(self) -> None:
        """The losses of the training so far."""
        dpg, points = self.dpg, self.session.history.points
        if not dpg.does_item_exist("losses"):
            return
        for name in [name for name in self._series if name not in points]:
            dpg.delete_item(self._series.pop(name))
        for name, (steps, values) in points.items():
            data = [list(map(float, steps)), [max(value, 1e-8) for value in values]]
            if name not in self._series:
                self._series[name] = dpg.add_line_series(*data, label=name, parent="values")
            else:
                dpg.set_value(self._series[name], data)

    # ---- what the user does -----------------------------------------------------------------------------------------

    def _toggle(self) -> None:
        (self.session.stop if self.session.running else self.session.start)()

    def _ask(self) -> None:
        self.dpg.show_item("confirm")

    def _start_over(self) -> None:
        self.dpg.hide_item("confirm")
        self.session.reset()

    def _edit(self) -> None:
        self.session.edit_prompt(self.dpg.get_value("prompt"), self.dpg.get_value("negative"))

    def first_camera(self) -> None:
        """Look from where the window began."""
        self.dpg.set_value("fovy", self.first.camera.fovy)
        self.view.show(camera=self.first.camera)

    def _settings_changed(self) -> None:
        """Ask for what the widgets say."""
        value = self.dpg.get_value
        background = tuple(channel / 255.0 for channel in value("background")[:3]) if value("own_background") else None
        light = {name: value(name) for name in ("light_polar", "light_azimuth", "ambient")}
        settings = ViewSettings(
            mode=value("mode"),
            shading=value("shading"),
            background=background,  # type: ignore[arg-type]
            crop=self._crop() if value("crop") else None,
            max_spp=max(value("max_spp"), 1),
            **light,
        )
        self.view.show(settings=settings, camera=self.view.request.camera.with_fovy(value("fovy")))

    def _crop(self) -> Crop:
        """The box of the sliders; where a low corner is above the high one, the two change places."""
        low, high = (self.dpg.get_value(tag)[:3] for tag in ("crop_low", "crop_high"))
        pairs = [(min(a, b), max(a, b, min(a, b) + 1e-3)) for a, b in zip(low, high, strict=True)]
        (x, right), (y, top), (z, front) = pairs
        return (x, y, z, right, top, front)


class _Rate:
    """Frames per second, from the numbers of the frames that were seen."""

    def __init__(self) -> None:
        self.at, self.number, self.rate = time.monotonic(), 0, 0.0

    def text(self, number: int) -> str:
        """ "12 frames/s"; the count begins anew every second."""
        now = time.monotonic()
        if now - self.at >= 1.0:
            self.rate = (number - self.number) / (now - self.at)
            self.at, self.number = now, number
        return f"{self.rate:.0f} frames/s"
