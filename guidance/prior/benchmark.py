"""The prompts of the benchmark: one of each kind, and which of them settings may be chosen on.

Each names colours that this kind was not trained in, except for those in :data:`TRAINED`.
"""

from guidance.prior.captions import BENCHMARK_PROMPTS, Caption
from guidance.prior.vocabulary import KIND_NAMES, STACKED, WORDINGS

PUBLISHED: tuple[str, ...] = tuple(prompt for prompt, _ in BENCHMARK_PROMPTS)
# Settings were chosen on the published ones before there were others, so these cannot judge. Two more make half of all kinds.
TUNING: tuple[str, ...] = (*PUBLISHED, "an orange teddy bear", "a purple pyramid on a green cube")
JUDGING: tuple[str, ...] = (
    "a purple cube",
    "a green ball",
    "a pink cone",
    "a brown cylinder",
    "a red pyramid",
    "a green donut",
    "a blue bottle with a red cap",
    "a blue bed with a pink pillow",
    "a purple sofa",
    "a green cactus with a blue pot",
    "a white ice cream",
    "a blue duck with an orange beak",
    "a purple umbrella with a yellow handle",
    "a blue ball on an orange cube",
    "a red cone on a yellow cube",
    "an orange cube on a green cylinder",
    "a red cube on a blue cube",
    "an orange pyramid on a blue cylinder",
)
PROMPTS: tuple[str, ...] = (*TUNING, *JUDGING)
TRAINED = ("a hamburger", "a green ball")  # the first has colours of its own; every colour of a ball was trained


def half_of(prompt: str) -> str:
    """ "tuning" for prompts that settings may be chosen on, "judging" for those that are only measured, "" for others."""
    return "tuning" if prompt in TUNING else "judging" if prompt in JUDGING else ""


def alike(caption: Caption) -> list[Caption]:
    """One caption of each kind, in the order of ``KIND_NAMES``, with the colours of a caption as far as the kind has them.

    The caption itself stands at the place of its own kind. A second colour is left out where a kind has one, and a
    stack gets the only colour twice.
    """
    return [caption if kind == caption.kind else recolored(kind, caption.colors) for kind in KIND_NAMES]


def recolored(kind: str, colors: tuple[str, ...]) -> Caption:
    """A caption of a kind with as many of the colours as it can name."""
    if kind in STACKED:
        return Caption(kind, (colors * 2)[:2])
    if WORDINGS[kind].plain:
        return Caption(kind)
    return Caption(kind, colors[: 2 if WORDINGS[kind].part else 1])
