"""Another prompt in the middle of a training: checked, prepared by the guidance, kept in the workspace as an event."""

from collections.abc import Sequence

from guidance.base import Conditions, Guidance, ImageCondition
from nerf.config.config import Config, with_values
from nerf.config.stages import Stage
from nerf.core.errors import UserError
from nerf.run import workspace
from nerf.utils import Trainer


def prepare(guidances: Sequence[Guidance], new: Conditions, old: Conditions) -> None:
    """Prepare all models of a run for new prompts; if one of them refuses, all go on with the old ones.

    Raises:
        UserError: a model cannot take them.
    """
    for guidance in guidances:
        guidance.check_text(new.text or "")
    done: list[Guidance] = []
    try:
        for guidance in guidances:
            done.append(guidance)
            guidance.prepare(new)
    except BaseException:
        for guidance in done:
            guidance.prepare(old)
        raise


def edit(trainer: Trainer, run: Config, text: str, negative: str, images: Sequence[ImageCondition] = ()) -> Config:
    """Go on with another prompt.

    The guidance embeds it, meshes and results are named by it, a checkpoint is written, and ``config.json`` keeps the edit as
    an event: a resumed run goes on with it.

    Args:
        trainer: of the stage that trains, between two steps.
        run: the options of the run.
        text: the prompt.
        negative: the negative prompt.
        images: the image prompts, which stay.

    Returns:
        The options of the run with the prompt.

    Raises:
        UserError: the run has no prompt, or this one is refused; nothing has changed then.
    """
    old = run.prompt
    if old.text is None or not trainer.guidance:
        raise UserError("this run learns from no words, so there is no prompt to edit; give --text when it is started")
    words = {"text": text.strip(), "negative": negative.strip()}
    if words == {"text": old.text, "negative": old.negative}:
        return run
    config = with_values(run, words, "typed")
    pictures = tuple(images)
    new = Conditions(config.prompt.text, config.prompt.negative, pictures)
    prepare(trainer.guidance, new, Conditions(old.text, old.negative, pictures))
    trainer.use_stage(with_prompt(trainer.stage, config))
    workspace.record_prompt(trainer.workspace, trainer.stage.name, trainer.step, old, config.prompt)
    if trainer.step > 0:
        trainer.save()
    return config


def with_prompt(stage: Stage, run: Config) -> Stage:
    """A stage with the words of the prompt of its run."""
    words = {"text": run.prompt.text, "negative": run.prompt.negative}
    return Stage(stage.kind, with_values(stage.config, words, "typed"))
