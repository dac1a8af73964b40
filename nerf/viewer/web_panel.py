"""The part of the web viewer's page that all browsers share: the training, its prompt, its losses, its results."""

import html
import math
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from nerf.viewer.history import History
from nerf.viewer.session import Session
from nerf.viewer.status import Message, Phase, Status

if TYPE_CHECKING:
    import viser

LINES = 6  # of messages that are shown
COLOURS = ("#d9480f", "#1971c2", "#2f9e44", "#9c36b5", "#e8590c", "#0c8599", "#c2255c", "#5c940d")
TINY = 1e-12  # losses below are left out of a logarithmic plot


def as_html(text: str, problem: bool = False) -> str:
    """Text as HTML that shows it and nothing else: prompts and paths may hold anything."""
    colour = "color:#c92a2a;" if problem else ""
    style = f"{colour}font-size:0.8em;padding:0 0.6em;white-space:pre-wrap;overflow-wrap:anywhere"
    return f'<div style="{style}">{html.escape(text)}</div>'


def headline(status: Status) -> str:
    """How the training stands, in a line."""
    words = [f"{status.phase}, stage {status.stage}"] if status.trains else ["showing a finished run"]
    words.append(f"step {status.step} of {status.total}")
    if status.phase == Phase.TRAINING and status.step_seconds > 0.0:
        left = max(status.total - status.step, 0) * status.step_seconds
        words.append(f"{1.0 / status.step_seconds:.3g} steps/s, {left / 60.0:.0f} min left" if left >= 60.0 else
                     f"{1.0 / status.step_seconds:.3g} steps/s, {left:.0f} s left")  # fmt: skip
    return "; ".join(words)


def aligned(points: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]) -> tuple[np.ndarray, ...]:
    """Steps [P], and for each loss its values [P] with NaN where it has none, for a plot with one axis of steps."""
    steps = np.array(sorted({step for at, _ in points.values() for step in at}), float)
    columns = []
    for at, values in points.values():
        column = np.full(len(steps), np.nan)
        column[np.searchsorted(steps, np.array(at, float))] = values
        columns.append(column)
    return steps, *columns


def _ignore(answer: object) -> None:
    """The answer of a command; how it went is among the messages."""


class Panel:
    """Folders "Training" and "Losses" of every browser.

    Args:
        server: the page.
        session: what it controls.
        close: ends the viewer.
    """

    def __init__(self, server: "viser.ViserServer", session: Session, close: Callable[[], None]):
        self.session, self.server, self._close = session, server, close
        self._shown: dict[str, Any] = {}
        self._said = 0
        self._lines: list[Message] = []
        self._plot: Any = None
        self._exporting = threading.Lock()
        gui, status = server.gui, session.status
        with gui.add_folder("Training", order=0):
            self.status = gui.add_html("")
            self.progress = gui.add_progress_bar(0.0)
            self.problem = gui.add_html("", visible=False)
            self.pause = gui.add_button("Pause", visible=status.trains, hint="the training waits after its step")
            self.save = gui.add_button("Save checkpoint", visible=status.trains)
            self.export = gui.add_button("Export and download GLB")
            self.prompt = gui.add_text("Prompt", status.prompt or "", multiline=True, visible=status.prompt is not None)
            self.negative = gui.add_text("Negative", status.negative, visible=status.prompt is not None)
            self.edit = gui.add_button(
                "Train with this prompt",
                visible=status.prompt is not None,
                hint="from the next step on; the workspace keeps it",
            )
            self.messages = gui.add_html("")
            self.reset = gui.add_button("Start over ...", visible=status.trains, color="gray")
            self.close = gui.add_button("End the viewer ...", color="gray")
        self.losses = gui.add_folder("Losses", order=20, visible=status.trains)
        with self.losses:
            self.logarithmic = gui.add_checkbox("Logarithmic", True)
        self._connect()

    def _connect(self) -> None:
        self.pause.on_click(lambda _: self.session.stop() if self.session.running else self.session.start())
        self.save.on_click(lambda _: _ignore(self.session.save()))
        self.edit.on_click(lambda _: _ignore(self.session.edit_prompt(self.prompt.value, self.negative.value)))
        self.export.on_click(lambda event: self._export(event.client))
        self.reset.on_click(lambda event: self._ask(event.client, "Start over", RESET, lambda: self.session.reset()))
        self.close.on_click(lambda event: self._ask(event.client, "End the viewer", END, self._close))
        self.logarithmic.on_update(lambda _: self._remake_plot())

    def _export(self, client: "viser.ClientHandle | None") -> None:
        """Write the mesh, then send it to the browser that asked; a failure is among the messages."""
        with self._exporting:  # one file after the other
            answer = self.session.export()
            if answer.exception() is not None or client is None:
                return
            path: Path = answer.result().files["glb"]
            client.send_file_download(f"{path.parent.parent.name}.glb", path.read_bytes(), save_immediately=True)

    def _ask(self, client: "viser.ClientHandle | None", title: str, question: str, do: Callable[[], object]) -> None:
        """Do something that cannot be taken back, if the browser says yes."""
        if client is None:
            return
        with client.gui.add_modal(title) as modal:
            client.gui.add_html(as_html(question))
            yes, no = client.gui.add_button(title, color="red"), client.gui.add_button("Cancel", color="gray")

        def answered(_: object) -> None:
            modal.close()
            do()

        yes.on_click(answered)
        no.on_click(lambda _: modal.close())

    # ---- what changes by itself -----------------------------------------------------------------------------------------

    def update(self) -> None:
        """Show how it stands now; only what has changed is sent."""
        status = self.session.status
        self._set("status", lambda: as_html("\n".join(filter(None, [headline(status), status.busy]))), self.status, "content")
        share = 100.0 * min(status.step / max(status.total, 1), 1.0)
        self._set("share", lambda: round(share, 1), self.progress, "value")
        self._set("problem", lambda: as_html(status.error, problem=True) if status.error else "", self.problem, "content")
        self._set("has problem", lambda: bool(status.error), self.problem, "visible")
        self._set("pause", lambda: "Pause" if self.session.running else "Resume", self.pause, "label")
        over = status.phase in (Phase.SHOWING, Phase.FAILED, Phase.RESULTS)
        self._set("over", lambda: over, self.pause, "disabled")
        self._set("exporting", lambda: "export" in status.busy, self.export, "disabled")
        if status.prompt is not None:  # an edit in another browser, or what the stage has
            self._set("prompt", lambda: status.prompt, self.prompt, "value")
            self._set("negative", lambda: status.negative, self.negative, "value")
        self._update_messages()
        self._update_plot(self.session.history)

    def _set(self, key: str, value: Callable[[], Any], handle: Any, attribute: str) -> None:
        """Set an attribute of an element where what it is to show has changed since the last time."""
        new = value()
        if key not in self._shown or self._shown[key] != new:
            self._shown[key] = new
            setattr(handle, attribute, new)

    def _update_messages(self) -> None:
        fresh = self.session.messages(self._said)
        if fresh:
            self._said = fresh[-1].number
            self._lines = [*self._lines, *fresh][-LINES:]
            self.messages.content = "".join(as_html(line.text, line.error) for line in self._lines)

    # ---- the plot -------------------------------------------------------------------------------------------------------

    def _update_plot(self, history: History) -> None:
        points = dict(history.points)
        signature = tuple((name, len(at), at[-1] if at else 0) for name, (at, _) in points.items())
        if self._shown.get("losses") == signature:
            return
        names_before = [name for name, *_ in self._shown.get("losses", ())]
        self._shown["losses"] = signature
        if self._plot is None or names_before != list(points):
            self._remake_plot()
        else:
            self._plot.data = self._data(points)

    def _data(self, points: dict[str, tuple[tuple[int, ...], tuple[float, ...]]]) -> tuple[np.ndarray, ...]:
        steps, *columns = aligned(points)
        if self.logarithmic.value:
            columns = [np.where(column > TINY, column, np.nan) for column in columns]
        return steps, *columns

    def _remake_plot(self) -> None:
        """A plot of the losses that there are."""
        if self._plot is not None:
            self._plot.remove()
            self._plot = None
        points = dict(self.session.history.points)
        if not points:
            return
        data = self._data(points)
        finite = [column[np.isfinite(column)] for column in data[1:]]
        series: list[Any] = [{"label": "step"}]
        series += [
            {"label": name, "stroke": COLOURS[i % len(COLOURS)], "width": 1.5, "spanGaps": True}
            for i, name in enumerate(points)
        ]
        logarithmic = self.logarithmic.value and any(len(column) and math.isfinite(column.max()) for column in finite)
        scales: dict[str, Any] = {"x": {"time": False}, "y": {"distr": 3 if logarithmic else 1}}
        with self.losses:
            self._plot = self.server.gui.add_uplot(data, tuple(series), scales=scales, aspect=1.4)


RESET = (
    "The stage begins anew, with other weights. Its checkpoints are set aside, and removed when the first new one is written. "
    "This cannot be taken back."
)
END = "The training stops after its step and saves a checkpoint; the same command goes on from there. All browsers are closed."
