"""The mesh of a run beside its held-out photographs: PSNR, SSIM, LPIPS where its weights are, silhouettes."""

from pathlib import Path

from nerf import provider
from nerf.config.config import Config
from nerf.core.errors import UserError
from nerf.data.posed_images import Photographs
from nerf.run import mesh_evaluation
from nerf.run.lpips import Lpips

MOST = 25  # photographs of a run that are compared, evenly chosen


def figures(path: Path, config: Config, perceptual: Lpips | None, most: int = MOST) -> dict[str, float]:
    """Compare a mesh with the held-out photographs of its run; nothing where none were held out.

    Args:
        path: the GLB of the run.
        config: its options.
        perceptual: LPIPS, where its weights are.
        most: photographs that are compared.

    Raises:
        UserError: the photographs cannot be read.
    """
    assert config.data.data is not None, "a run on photographs"
    try:
        splits = Photographs.splits_of(config.data.data, config.data, "cpu", config.field.bound, config.wild.wild)
    except UserError as error:
        raise UserError(f"{error}; or judge without them (--no_photographs)") from None
    held_out = splits.get("test")
    if held_out is None:
        return {}
    chosen = provider.evenly(len(held_out), most)
    return mesh_evaluation.measure(path, held_out, chosen, config.render.min_near, config.field.bound, perceptual=perceptual)
