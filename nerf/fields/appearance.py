"""Appearance of photographs: a vector for each, which the colours of a field hear and its geometry does not.

B pictures, K vectors of A numbers, M points, C features. The encoder is that of Ha-NeRF (Chen et al. 2022, sec. 4.1), the
learned vectors those of NeRF in the Wild (Martin-Brualla et al. 2021, sec. 4.1).
"""

from collections.abc import Sequence
from pathlib import PurePosixPath
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nerf.config.wild import WildConfig
from nerf.core.activation import at_least_single
from nerf.core.errors import UserError
from nerf.core.structs import AppearanceCodes, Rays, SceneInfo
from nerf.core.transfer import upload
from nerf.core.words import counted, did_you_mean, is_number
from nerf.fields.view_trend import view_trend

HEARD = 16  # numbers that a colour head makes of a vector, and features of a point that it sets against them
TINT_HIDDEN = 64
# Channels of the encoder's layers, and the smallest picture that their borders of reflected pixels leave something of.
CHANNELS, LEAST_SIDE = (64, 128, 256, 256, 256), 16
COMPARED = 100  # photographs at most that a light is compared with
SAME_PICTURE = 1.0 / 255.0  # mean difference of colours below which a picture is a training photograph
FIRST_SPREAD = 0.1  # standard deviation of learned vectors before training
# Learning rates as shares of --lr: a network without norm layers bears less than the tables of a field.
ENCODER_RATE, EMBEDDING_RATE = 0.05, 1.0


class PictureEncoder(nn.Module):
    """A convolutional network that makes a vector of a whole picture: five layers, their mean over the picture, a linear one.

    Borders are reflected, and nothing is normalised, as a norm layer would take away what is to be seen: the light.

    Args:
        size: A.
    """

    def __init__(self, size: int):
        super().__init__()
        ins = (3, *CHANNELS[:-1])
        self.layers = nn.ModuleList(
            nn.Conv2d(a, b, 7 if i == 0 else 4, stride=1 if i == 0 else 2, padding=3 if i == 0 else 1, padding_mode="reflect")
            for i, (a, b) in enumerate(zip(ins, CHANNELS, strict=True))
        )
        self.out = nn.Linear(CHANNELS[-1], size)

    def forward(self, pictures: Tensor) -> Tensor:
        """Vectors [B, A] of pictures [B, 3, H, W] in [0, 1]. Differentiable.

        Pictures with a side below ``LEAST_SIDE`` are continued by their own borders up to it.
        """
        height, width = pictures.shape[-2:]
        missing = (max(LEAST_SIDE - width, 0), max(LEAST_SIDE - height, 0))
        x = 2.0 * pictures - 1.0
        if any(missing):
            right, below = missing
            x = functional.pad(x, (right // 2, right - right // 2, below // 2, below - below // 2), mode="replicate")
        for layer in self.layers:
            x = functional.relu(layer(x))
        return at_least_single(self.out(x.mean((-2, -1))))


class Appearance(nn.Module):
    """What the light of a photograph is: a vector for each, and the one that is shown.

    Args:
        config: the options: kind, size, and the photograph whose light is shown.
        scene: its training photographs.

    Raises:
        UserError: no training photograph has the name or the index of ``--shown_light``.
    """

    def __init__(self, config: WildConfig, scene: SceneInfo):
        super().__init__()
        assert scene.pictures is not None, "there are photographs"
        self.kind, self.size = config.appearance, config.appearance_size
        self.names, self.count = scene.pictures.names, len(scene.pictures.names)
        self.shown_index = shown_index(config.shown_light, scene.pictures.names)
        self.side = config.appearance_side
        self.encoder = PictureEncoder(self.size) if self.kind == "encoder" else None
        self.pictures = scene.pictures.make(self.side) if self.encoder is not None else []
        self.axes = scene.pictures.axes
        self.embedding = None
        if self.kind == "embedding":
            self.embedding = nn.Embedding(self.count, self.size)
            nn.init.normal_(self.embedding.weight, 0.0, FIRST_SPREAD)
        self._shown: tuple[tuple[int, ...], Tensor] | None = None

    def encode(self, pictures: Tensor) -> Tensor:
        """Vectors [B, A] of pictures [B, 3, H, W] in [0, 1]; see :class:`PictureEncoder`. Differentiable.

        Raises:
            ValueError: the vectors of this model are learned, not encoded.
        """
        if self.encoder is None:
            raise ValueError("Appearance.encode: vectors of the kind 'embedding' are learned; see nerf.run.appearance_fit")
        return self.encoder(pictures)

    def of_photographs(self, index: Tensor) -> Tensor:
        """Vectors [B, A] of training photographs [B] int64. Differentiable.

        Raises:
            ValueError: one of them is no training photograph.
        """
        return self._vectors(index.tolist(), index.device)

    def _vectors(self, images: Sequence[int], device: torch.device) -> Tensor:
        if any(not 0 <= i < self.count for i in images):
            raise ValueError(
                f"Appearance: expected indices of {counted(self.count, 'training photograph')}, got {list(images)}"
            )
        if self.embedding is not None:
            return self.embedding(upload([torch.tensor(images)], device)[0])
        return self.encode_each([self.pictures[i] for i in images])

    def encode_each(self, pictures: Sequence[Tensor]) -> Tensor:
        """Vectors [B, A] of B pictures [3, h, w] of any sizes; those of one size are encoded together. Differentiable."""
        sizes: dict[torch.Size, list[int]] = {}
        for i, picture in enumerate(pictures):
            sizes.setdefault(picture.shape, []).append(i)
        made = [self.encode(torch.stack([pictures[i] for i in group])) for group in sizes.values()]
        order = [i for group in sizes.values() for i in group]
        if len(made) == 1:
            return made[0]
        (back,) = upload([torch.tensor(sorted(range(len(order)), key=order.__getitem__))], made[0].device)
        return torch.cat(made)[back]

    def codes(self, rays: Rays) -> AppearanceCodes:
        """The appearances of N rays of the training photographs. Differentiable.

        Rays that are no patches and whose photographs have to be encoded wait for a GPU.
        """
        image_index, device = rays.image_index, rays.origins.device
        assert image_index is not None, "rays of photographs"
        if rays.patch_images is not None:
            images = sorted(set(rays.patch_images))
            vectors = self._vectors(images, device)
            if len(images) == 1:
                return AppearanceCodes(vectors)
            (index,) = upload([torch.tensor([images.index(i) for i in rays.patch_images])], device)
            return AppearanceCodes(vectors, index.repeat_interleave(len(rays) // len(rays.patch_images)))
        if self.embedding is not None:
            return AppearanceCodes(self.embedding.weight, image_index)
        seen, index = torch.unique(image_index, return_inverse=True)
        return AppearanceCodes(self.of_photographs(seen), index)

    @torch.no_grad()
    def shown(self) -> Tensor:
        """The vector [A] in whose light the scene is shown, of the weights as they are."""
        state = tuple(parameter._version for parameter in self.parameters())
        if self._shown is None or self._shown[0] != state:
            self._shown = state, self.light(self.shown_index)
        return self._shown[1]

    @torch.no_grad()
    def light(self, index: int) -> Tensor:
        """The vector [A] that shows the light of a training photograph in all directions.

        It is the photograph's own less what follows from where it looks; see :func:`nerf.fields.view_trend.view_trend`.

        Raises:
            ValueError: it is no training photograph.
        """
        device = next(self.parameters()).device
        if self.axes is None:
            return self._vectors([index], device)[0]
        chosen = [index, *(i for i in range(0, self.count, -(-self.count // COMPARED)) if i != index)]
        vectors = self._vectors(chosen, device)
        return vectors[0] - view_trend(vectors, self.axes[chosen].to(device))[0]

    def photograph_of(self, picture: Tensor) -> int | None:
        """Which training photograph a small picture [3, h, w] is, of an encoder; None: none of them."""
        for i, known in enumerate(self.pictures):
            if known.shape == picture.shape and float((known - picture.to(known)).abs().mean()) < SAME_PICTURE:
                return i
        return None

    @torch.no_grad()
    def first_guess(self) -> Tensor:
        """A vector [A] from which that of an unknown photograph may be looked for: the mean of learned ones, or the shown."""
        return self.shown() if self.embedding is None else self.embedding.weight.mean(0)

    def param_groups(self, lr: float) -> list[dict[str, Any]]:
        """Optimiser groups (params, lr, name)."""
        rate = ENCODER_RATE if self.encoder is not None else EMBEDDING_RATE
        return [{"params": list(self.parameters()), "lr": rate * lr, "name": "appearance"}]


def shown_index(asked: str, names: Sequence[str]) -> int:
    """Index of the training photograph that ``--shown_light`` names, with or without its folders, or counts from 0.

    Raises:
        UserError: there is none.
    """
    if asked in names:
        return list(names).index(asked)
    if len(alike := [i for i, name in enumerate(names) if PurePosixPath(name).name == asked]) == 1:
        return alike[0]
    if is_number(asked) and asked.isdigit():
        if int(asked) < len(names):
            return int(asked)
        raise UserError(
            f"--shown_light {asked}: there are {counted(len(names), 'training photograph')}, counted from 0; give a smaller "
            "index, or a name"
        )
    raise UserError(
        f"--shown_light {asked}: no training photograph has this name; give one of {names[0]} and so on, or an index from 0"
        f"{did_you_mean(asked, names)}"
    )


class HeardAppearance(nn.Module):
    """What a colour head reads of an appearance, beside its other inputs.

    Args:
        size: A.
    """

    def __init__(self, size: int):
        super().__init__()
        self.code = nn.Linear(size, HEARD)

    def forward(self, appearance: AppearanceCodes | None, like: Tensor) -> Tensor:
        """[M, HEARD], a row for each of ``like`` [M, ...]; zeros without an appearance. Differentiable."""
        if appearance is None:
            return like.new_zeros(len(like), HEARD)
        return appearance.rows(self.code(appearance.vectors), len(like))


class Tint(nn.Module):
    """Diffuse colours in the light of an appearance: their logits scaled and shifted, and an offset that sees the colour.

    One map of colours for the whole scene is known from wherever the photograph looks, and holds where it does not look. The
    light of a place, as of sun and shadow, is known only there: ``local`` tints see the point too. Nothing changes before
    training, nor without an appearance.

    Args:
        features: C.
        size: A.
        local: the offset sees the features of the point.
    """

    def __init__(self, features: int, size: int, local: bool = False):
        super().__init__()
        self.features = nn.Linear(features, HEARD) if local else None
        self.heard = HeardAppearance(size)
        width = 3 + HEARD + (HEARD if local else 0)
        self.hidden, self.out = nn.Linear(width, TINT_HIDDEN), nn.Linear(TINT_HIDDEN, 3)
        self.affine = nn.Linear(size, 6)
        for layer in (self.out, self.affine):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, features: Tensor, logits: Tensor, appearance: AppearanceCodes | None) -> Tensor:
        """Logits [M, 3] of diffuse colours in the light of an appearance; differentiable.

        Args:
            features: [M, C] of the points.
            logits: [M, 3] without it.
            appearance: of the points.
        """
        if appearance is None:
            return logits
        gain, shift = appearance.rows(self.affine(appearance.vectors), len(logits)).chunk(2, -1)
        seen = [torch.sigmoid(logits), self.heard(appearance, features)]
        if self.features is not None:
            seen.append(self.features(features))
        return logits * (1.0 + gain) + shift + self.out(functional.relu(self.hidden(torch.cat(seen, -1))))
