"""Drive a run from Python and look at the scene on the way.

Run from the project's folder: ``python -m examples.drive_trainer``. It trains a blue ball with the embedded prior into
``trial/``, writes ``ball_00050.png``, ``ball_00100.png`` ... and the mesh. ``examples/train.ipynb`` does it in a notebook.
"""

from pathlib import Path

import somnia
from nerf.core.images import write_png


def main(folder: str = ".", **flags: object) -> Path:
    """Train a ball, with any flags of main.py as keywords; returns the path of its mesh."""
    config = somnia.configure(text="a blue ball", workspace=f"{folder}/trial", O=True, **flags)
    with somnia.open_run(config) as run:  # goes on where the workspace stopped
        for record in run.steps(300):  # leave the loop at any step
            if (record.step + 1) % 50 == 0:
                write_png(f"{folder}/ball_{record.step + 1:05d}.png", run.picture(azimuth=30))
        run.trainer.save()
        mesh = run.export()
    return mesh.files["glb"]


if __name__ == "__main__":
    print(main())
