"""Background removal by a local ONNX model, in the input layouts of U2-Net, IS-Net and BiRefNet. H rows, W columns.

Nothing is downloaded. onnxruntime is optional (``pip install "somnia[matting]"``); a file in ONNX is data and runs no code.
"""

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from nerf.core.errors import UserError
from nerf.core.files import reading

FOUND = 0.3  # opacity that some pixel must reach; below it the model saw no object
SIGMOID_MARGIN = 0.05  # values this far beyond [0, 1] are logits


@dataclass(frozen=True)
class Layout:
    """How a family of models takes a picture."""

    mean: tuple[float, float, float]  # of the colours in [0, 1], by channel
    deviation: tuple[float, float, float]
    by_maximum: bool  # colours are divided by the largest in the picture rather than by 255
    side: int  # pixels of the square input, where the file leaves it open


LAYOUTS: dict[str, Layout] = {
    "u2net": Layout((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), by_maximum=True, side=320),
    "isnet": Layout((0.5, 0.5, 0.5), (1.0, 1.0, 1.0), by_maximum=True, side=1024),
    "birefnet": Layout((0.485, 0.456, 0.406), (0.229, 0.224, 0.225), by_maximum=False, side=1024),
}


class Matting:
    """A model that gives the opacity of the object in a picture.

    Args:
        path: an ONNX file with one picture as its input; the first output is the opacity, in [0, 1] or as logits.
        layout: one of :data:`LAYOUTS`; "auto" goes by the name of the file, else by the size of the input and the number of
            outputs.
        threads: of the processor; 0: as many as there are cores.

    Raises:
        UserError: onnxruntime is missing, the file is not a model, or one with other inputs.
    """

    def __init__(self, path: Path, layout: str = "auto", threads: int = 0):
        if find_spec("onnxruntime") is None:
            raise UserError("--matting FILE.onnx needs onnxruntime: pip install onnxruntime, or use --matting grabcut")
        hint = "name a model file of U2-Net, IS-Net or BiRefNet, or use --matting grabcut"
        if not path.is_file():
            raise UserError(f"--matting {path}: no such file; {hint}")
        with reading(f"--matting {path}", hint):
            import onnxruntime

            options = onnxruntime.SessionOptions()
            options.intra_op_num_threads, options.log_severity_level = threads, 3
            self._session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.path, inputs = path, self._session.get_inputs()
        shape = list(inputs[0].shape) if inputs else []
        if len(inputs) != 1 or len(shape) != 4 or shape[1] != 3:
            raise UserError(f"--matting {path} takes {[i.shape for i in inputs]}, not one picture [1, 3, H, W]; {hint}")
        self._input = inputs[0]
        self.layout = self._guess(shape[2]) if layout == "auto" else layout
        open_size = LAYOUTS[self.layout].side
        self._size = tuple(n if isinstance(n, int) and n > 0 else open_size for n in shape[2:])

    def _guess(self, side: Any) -> str:
        """The layout of a file that does not say it."""
        name = self.path.name.lower().replace("-", "").replace("_", "")
        named = [layout for layout in LAYOUTS if layout in name]
        if named:
            return named[0]
        if side == LAYOUTS["u2net"].side:
            return "u2net"
        return "birefnet" if len(self._session.get_outputs()) == 1 else "isnet"

    def __call__(self, rgb: np.ndarray) -> np.ndarray:
        """Opacity [H, W] in [0, 1] of the object in a picture [H, W, 3] float in [0, 1].

        Raises:
            UserError: the model fails on it, or sees no object.
        """
        layout, (height, width) = LAYOUTS[self.layout], self._size
        picture = Image.fromarray(np.uint8(np.round(rgb * 255))).resize((width, height), Image.Resampling.LANCZOS)
        colours = np.asarray(picture, np.float32)
        colours = colours / (max(float(colours.max()), 1.0) if layout.by_maximum else 255.0)
        mean, deviation = (np.array(values, np.float32) for values in (layout.mean, layout.deviation))
        colours = (colours - mean) / deviation
        dtype = np.float16 if "float16" in self._input.type else np.float32
        with reading(f"--matting {self.path}", "use another model, or --matting grabcut", problem="does not run"):
            feed = {self._input.name: np.ascontiguousarray(colours.transpose(2, 0, 1)[None], dtype)}
            found = self._session.run(None, feed)[0]
        values = np.asarray(found, np.float32).reshape(-1, *found.shape[-2:])[0]
        if not np.isfinite(values).all():
            raise UserError(f"--matting {self.path} gives values that are not finite; use another model")
        if values.min() < -SIGMOID_MARGIN or values.max() > 1 + SIGMOID_MARGIN:
            values = 1.0 / (1.0 + np.exp(-values.clip(-60, 60)))
        if values.max() < FOUND:
            raise UserError(f"--matting {self.path} sees no object in the picture; use another model, or a picture with alpha")
        values = (values - values.min()) / max(float(values.max() - values.min()), 1e-6)
        size = (rgb.shape[1], rgb.shape[0])
        return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR), float).clip(0, 1)
