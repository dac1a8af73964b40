"""Drive the trainer from a notebook: ``Trainer.run`` yields after every step, and whoever iterates decides what happens.

Run from the project's folder: ``python -m examples.drive_trainer``. It trains a blue ball with the embedded prior.
"""

import main
from nerf.config.config import parse
from nerf.config.resolve import resolve
from nerf.run.logger import Report
from nerf.run.workspace import open_workspace


def train(*flags: str, steps: int = 20) -> dict[str, float]:
    """Train a few steps with any flags of main.py; returns what the last step logs."""
    asked = parse(flags)
    plan = resolve(asked, main.read_disk(asked), main.choose_weights)
    device = main.prepare_machine(plan.config)
    inputs = main.make_inputs(plan, device)
    open_workspace(plan)
    terms = {}
    with Report(plan.config.output.workspace, plan.lines) as report:
        trainer = main.make_trainer(plan.pending[0], inputs, device, report)
        for record in trainer.run():  # stop at any step: save() keeps everything
            terms = record.terms
            if record.step + 1 >= steps:
                break
        trainer.save()
        trainer.preview()
    return {name: float(value) for name, value in terms.items()}


if __name__ == "__main__":
    print(train("--text", "a blue ball", "--workspace", "trial", "-O"))
