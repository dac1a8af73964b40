"""The held-out reference pictures of image to 3D: objects that no prior was trained on, and their true views. K views.

Kinds and colours are held out as captions are (:func:`guidance.prior.captions.is_held_out`); proportions are drawn from
seeds that no shard has. The seeds of the shards are 0, 1, ... and :data:`guidance.prior.view_dataset.FIRST_SEED` onwards.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from guidance.prior.captions import Caption
from guidance.prior.dataset import shaded
from guidance.prior.render import views_of
from guidance.prior.shapes import EMPTY, Shape, caption_of, palette, random_proportions

FIRST_SEED = 500_000  # of the proportions of the held-out objects
RADIUS, FOVY = 3.2, 20.0  # the lens of references and of the views that results are measured at
SIZE = 256  # pixels a side of a reference
LIGHT = (0.0, 0.25, 1.0)  # direction towards the light, in camera axes: near the camera
AMBIENT = 1.0  # unlit: a light that goes with the camera would change the object from view to view


@dataclass(frozen=True)
class Reference:
    """A held-out object and the camera of its picture. Whoever uses the picture knows the polar angle, not the front."""

    prompt: str  # kind and colours; it is not given to the run
    group: str  # "symmetric" or "view", as of the benchmark prompts
    half: str  # settings may be chosen on the half "tuning"; "test" is only measured
    seed: int  # of the proportions
    front: float  # degrees: azimuth of the camera from the object's own front
    polar: float = 75.0  # degrees

    @property
    def name(self) -> str:
        """As a file name."""
        return self.prompt.replace(" ", "_")


REFERENCES: tuple[Reference, ...] = (
    Reference("a purple mushroom", "symmetric", "tuning", FIRST_SEED, 0.0),
    Reference("a pink tree", "symmetric", "test", FIRST_SEED + 1, 0.0),
    Reference("a blue snowman", "symmetric", "tuning", FIRST_SEED + 2, 20.0),
    Reference("a green rocket", "symmetric", "test", FIRST_SEED + 3, 10.0),
    Reference("a red ball on a blue cylinder", "symmetric", "tuning", FIRST_SEED + 4, 0.0),
    Reference("an orange lamp", "symmetric", "test", FIRST_SEED + 5, 0.0),
    Reference("an orange chair", "view", "tuning", FIRST_SEED + 6, 30.0, 70.0),
    Reference("a pink car", "view", "test", FIRST_SEED + 7, -40.0, 72.0),
    Reference("a yellow mug", "view", "tuning", FIRST_SEED + 8, 25.0),
    Reference("a green house with a yellow roof", "view", "test", FIRST_SEED + 9, 35.0, 72.0),
    Reference("a red airplane", "view", "tuning", FIRST_SEED + 10, -30.0, 65.0),
    Reference("a blue dog", "view", "test", FIRST_SEED + 11, 40.0),
)


def shape_of(reference: Reference) -> Shape:
    """The true shape, in its own frame."""
    caption: Caption = caption_of(reference.prompt)
    drawn = random_proportions(caption.kind, 1, torch.Generator().manual_seed(reference.seed))
    return Shape(caption.kind, {name: float(value) for name, value in drawn.items()}, palette(caption))


def cameras_at(polar: Tensor, azimuth: Tensor) -> dict[str, Tensor]:
    """Cameras with the lens of the references: ``polar``, ``azimuth``, ``radius``, ``fovy``, each [K], from angles [K]."""
    radius, fovy = torch.full_like(polar, RADIUS), torch.full_like(polar, FOVY)
    return {"polar": polar, "azimuth": azimuth, "radius": radius, "fovy": fovy}


def seen_from(reference: Reference, polar: Tensor, azimuth: Tensor) -> dict[str, Tensor]:
    """Cameras in the object's own frame, for angles [K] in the frame of the run, where the reference is at azimuth 0."""
    return cameras_at(polar, azimuth + reference.front)


def true_layers(shape: Shape, cameras: dict[str, Tensor], size: int, ambient: float = AMBIENT) -> Tensor:
    """Views of a shape, unlit or under a light near each camera: colour times coverage, then coverage, [K, 4, size, size]."""
    count = len(cameras["polar"])
    material, normal, _ = views_of(shape, cameras, size)
    light = torch.nn.functional.normalize(torch.tensor(LIGHT), dim=0).expand(count, 3)
    colours = shape.palette.clone()
    colours[EMPTY] = 0
    layers = shaded(material, normal, colours.expand(count, -1, -1), light, torch.full((count,), ambient))
    return torch.nn.functional.avg_pool2d(layers, 2)


def picture(reference: Reference, size: int = SIZE) -> Tensor:
    """The reference picture, RGBA [4, size, size] in [0, 1], colour not premultiplied."""
    at = seen_from(reference, torch.tensor([reference.polar]), torch.zeros(1))
    layers = true_layers(shape_of(reference), at, size)[0]
    return torch.cat([layers[:3] / layers[3:].clamp(min=1e-6), layers[3:]]).clamp(0, 1)
