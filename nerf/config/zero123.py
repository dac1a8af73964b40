"""Options of guidance by Zero123."""

from dataclasses import dataclass

from nerf.config.parser import RUN, Group, option


@dataclass(frozen=True)
class Zero123Config(Group):
    """Zero123: part of the options of guidance."""

    zero123: str = option(
        "auto",
        "weights of zero123: folder, .ckpt, hub id, zero123-xl or stable-zero123, or embedded; auto takes what is there",
        kept=RUN,
        path=True,
    )
    zero123_ckpt: str = option(
        "pretrained/zero123/zero123-xl.ckpt", "the .ckpt that --zero123 auto takes first", kept=RUN, path=True
    )
    zero123_grad_scale: str = option(
        "angle",
        "factor of a view's gradient from zero123: angle grows from 0 at the nearest picture to 1 opposite of it, None is 1",
        choices=("angle", "None"),
    )
