"""Small models whose colours depend on an appearance, for tests."""

import torch

from nerf.config.config import Config, with_values
from nerf.config.stages import NERF, Stage
from nerf.core.structs import Rays, SceneInfo, SmallPictures
from nerf.renderer import build_model
from tests.nerf.analytic import image_rays

SMALL = {
    "data": "x", "grid_levels": 4, "grid_log2": 8, "grid_finest": 32, "hidden": 16, "num_steps": 12, "upsample_steps": 4,
    "appearance_size": 6, "mask_vector": 4, "mask_hidden": 8, "mask_octaves": 3, "sdf_init_steps": 0, "colour_hidden": 16,
}  # fmt: skip


def pictures(count=3):
    """Small pictures of one colour each, of several sizes."""
    sizes = ((20, 30), (30, 20), (9, 5))
    made = [torch.full((3, *sizes[i % 3]), (i + 1) / (count + 1)) for i in range(count)]
    return SmallPictures(tuple(f"{i}.png" for i in range(count)), lambda side: made)


def model(backbone="grid", appearance="encoder", background="constant", count=3, **options):
    """A model, and its stage and scene; its colours depend on the appearance as they would after some training."""
    values = SMALL | {"backbone": backbone, "appearance": appearance, "background": background} | options
    stage = Stage(NERF, with_values(Config(), values, "typed"))
    scene = SceneInfo(num_images=count + 1, num_training=count, pictures=pictures(count))
    torch.manual_seed(1)
    made = build_model(stage, scene)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if ("tint" in name or "view_colour" in name or "colour." in name or "heard" in name) and not parameter.any():
                parameter.copy_(0.5 * torch.randn(parameter.shape, generator=generator))
    return made, stage, scene


def rays(side=6, images=3):
    """The rays of one view, as if each were of another photograph in turn."""
    made = image_rays(side, side, distance=2.0, fovy=50.0)
    index = torch.arange(len(made)) % images
    return Rays(made.origins, made.directions, made.view_index, made.shape, image_index=index)


def patches(images, side=6):
    """The rays of one view for each of some photographs, as patches."""
    made = image_rays(side, side, distance=2.0, fovy=50.0)
    count = len(images)
    return Rays(
        made.origins.repeat(count, 1),
        made.directions.repeat(count, 1),
        torch.zeros(count * len(made)).long(),
        (count, side, side),
        image_index=torch.tensor(images).repeat_interleave(len(made)),
        patch_images=tuple(images),
    )
