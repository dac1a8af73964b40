"""The surface of a mesh stage as it is delivered, for its last pictures and its files: finished once for both."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from nerf.mesh.export import checked
from nerf.mesh.export_options import ExportOptions
from nerf.mesh.finish import FinishedSurface, finish_given
from nerf.mesh.mesh import Mesh
from nerf.render.triangles import SurfacePath, TrianglePath
from nerf.renderer import NeRFRenderer


@dataclass(frozen=True)
class _Remembered:
    """A finished surface, and what it was made of."""

    mesh: Mesh
    asked: tuple[ExportOptions, Any]  # the options, and the numbers of the transform
    surface: FinishedSurface

    def is_of(self, mesh: Mesh, asked: tuple[ExportOptions, Any]) -> bool:
        """Whether it was made of these."""
        pairs = ((self.mesh.vertices, mesh.vertices), (self.mesh.faces, mesh.faces))
        return self.asked == asked and all(np.array_equal(mine, theirs) for mine, theirs in pairs)


class Finisher:
    """Finishes the surface that a model has of its own, and remembers the last one for as long as it stays the same."""

    def __init__(self) -> None:
        self._last: _Remembered | None = None

    def surface(self, model: NeRFRenderer, options: ExportOptions, transform) -> FinishedSurface | None:
        """The current surface of a mesh stage as it is delivered; None of a volume, and of a mesh file, which stays as it is.

        Args:
            model: of the stage.
            options: of the export.
            transform: [4, 4] from the box to the data's own world, None if they are the same.

        Raises:
            ExportError: there is no surface that could be delivered.
        """
        if model.path.painted() is not None or (own := model.surface()) is None:
            return None
        mesh, matrix = Mesh(own.vertices.cpu().numpy(), own.faces.cpu().numpy()), checked(transform)
        asked = (options, None if matrix is None else matrix.tolist())
        if self._last is None or not self._last.is_of(mesh, asked):
            self._last = _Remembered(mesh, asked, finish_given(mesh, options, model.bound, matrix))
        return self._last.surface

    def model(self, model: NeRFRenderer, options: ExportOptions, transform) -> NeRFRenderer:
        """The model with :meth:`surface` in place of the one that is trained; the model itself where there is none.

        Args, Raises: see :meth:`surface`.
        """
        finished, path = self.surface(model, options, transform), model.path
        if finished is None:
            return model
        assert isinstance(path, TrianglePath), "it has a surface of its own"
        device = next(model.parameters()).device
        return model.with_path(SurfacePath(path.bound, path.min_near, finished.mesh, device))
