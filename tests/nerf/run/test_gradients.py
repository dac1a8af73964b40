"""Several processes train one run (gloo, tiny models): their step, their weights, and rows of a table that few samples touch.

The processes run this file: ``python -m tests.nerf.run.test_gradients RANK WORLD FOLDER``.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import distributed, nn

from nerf.core.errors import PeerError, UserError
from nerf.core.structs import Shard
from nerf.run import distributed as ours
from nerf.run.gradients import GradientSum
from tests.nerf.test_utils import make

ROOT = Path(__file__).resolve().parents[3]
FLAGS = ("--cuda_ray", "--batch_size", "6", "--iters", "4", "--lambda_tv", "0.1", "--lambda_opacity", "0.1", "--optim", "adam")
STEPS, ROWS = 3, 1 << 15
needs_gloo = pytest.mark.skipif(
    not (distributed.is_available() and distributed.is_gloo_available()), reason="torch has no gloo backend here"
)


def trained(folder, shards):
    """A run after a few steps: its weights, what guides the rays, and the terms of the last step."""
    trainer = make(folder, *FLAGS, shards=shards)
    for _ in range(STEPS):
        terms = trainer.train_step()
    state = {name: value.clone() for name, value in trainer.model.state_dict().items()}
    return trainer, state | {f"term {name}": value.reshape(()).double() for name, value in terms.items() if name != "x"}


def tables(rank, world):
    """Sums of a table of which each process touches other rows, of one that all touch, and of parameters with gaps."""
    few, all_of_it, some, none = (nn.Parameter(torch.zeros(*size)) for size in ((ROWS, 4), (ROWS, 3), (5,), (2,)))
    few.grad = torch.zeros_like(few)
    few.grad[rank :: 97 * world] = rank + 1.0
    few.grad[7] = 1.0
    all_of_it.grad = torch.full_like(all_of_it, rank + 1.0)
    if rank == 1:
        some.grad = torch.full((5,), 2.0)
    add = GradientSum()
    terms = add([few, all_of_it, some, none], {"a": torch.tensor(0.5 * rank)} if rank else {}, ["b", "a"])
    return {"few": few.grad, "all": all_of_it.grad, "some": some.grad, **terms}, add.sent, none.grad is None


def process(rank, world, folder):
    """What each process does; its findings go to a file."""
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    trainer, state = trained(folder / "run", (Shard(rank, world),))
    sent = dict(trainer.gradient_sum.sent)
    found, table_sent, untouched = tables(rank, world)
    facts = [
        sum(sent.values()),
        table_sent["rows"],
        table_sent["tables"],
        untouched,
        ours.from_first(rank + 7),
        ours.largest(rank),
    ]
    copied = torch.full((3, 2), float(rank)).T
    ours.copy_first([copied])
    try:
        ours.require_same(rank, "steps", "try again")
    except UserError as error:
        facts.append(str(error) == f"the processes of this run have different steps (0 to {world - 1}): try again")
    if rank == 1:
        save(folder, rank, state, found, facts, copied)
        os._exit(0)  # and is gone, as a killed process is
    try:
        if rank == 0:
            while True:  # the other one may take a moment to be gone
                trainer._with_others(trainer.train_step)
        return save(folder, rank, state, found, facts, copied)
    except PeerError as error:
        whole = (folder / "run" / "checkpoints" / f"df_step_{trainer.step:08d}.safetensors").is_file()
        facts += [f"step {trainer.step}: another process of this run ended" in str(error), whole]
        return save(folder, rank, state, found, facts, copied)


def save(folder, rank, state, found, facts, copied):
    """Write the findings of a process."""
    tensors = {**state, **{f"table {name}": value for name, value in found.items()}, "copied": copied}
    tensors["facts"] = torch.tensor([float(fact) for fact in facts])
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / f"{rank}.safetensors")


@pytest.fixture(scope="module", params=[2, 3])
def ranks(request, tmp_path_factory):
    """What 2 and 3 processes found, and the same run in a single process that computes all shares itself."""
    folder, world = tmp_path_factory.mktemp("ranks"), request.param
    command = [sys.executable, "-m", "tests.nerf.run.test_gradients"]
    started = [
        subprocess.Popen([*command, str(rank), str(world), str(folder)], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        for rank in range(world)
    ]
    errors = [one.communicate(timeout=110)[1] for one in started]
    assert [one.returncode for one in started] == [0] * world, errors
    alone = trained(folder / "alone", tuple(Shard(rank, world) for rank in range(world)))[1]
    return [load_file(folder / f"{rank}.safetensors") for rank in range(world)], alone


pytestmark = [needs_gloo, pytest.mark.slow]


def test_the_step_of_several_processes_is_that_of_one_with_all_their_views(ranks):
    found, alone = ranks
    assert {name for name in found[0] if name in alone} == set(alone)
    # Sums in another order; Adam's first steps have the size of the rate, whatever the gradient.
    for name, value in alone.items():
        if value.is_floating_point():
            torch.testing.assert_close(found[0][name], value, rtol=2e-3, atol=2e-4, msg=name)


def test_all_processes_hold_the_same_weights_and_the_same_occupancy_bit_for_bit(ranks):
    found, _ = ranks
    shared = [name for name in found[0] if name.startswith(("field.", "background.", "path.grid"))]
    assert any("bitfield" in name for name in shared) and any("embeddings" in name for name in shared)
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in shared)


def test_rows_that_few_samples_touch_travel_alone_and_sum_to_the_same(ranks):
    found, world = ranks[0], len(ranks[0])
    expected = torch.zeros(ROWS, 4)
    for rank in range(world):
        expected[rank :: 97 * world] += rank + 1.0
    touched = int(((expected != 0).any(1) | (torch.arange(ROWS) == 7)).sum())
    expected[7] = world
    total = sum(range(1, world + 1))
    for one in found:
        assert torch.equal(one["table few"], expected)
        assert (one["table all"] == total).all() and one["facts"][1] == 4 * 4 * touched and one["facts"][2] == 4 * 3 * ROWS


def test_a_parameter_that_one_process_uses_learns_in_all_and_one_that_none_uses_in_none(ranks):
    for one in ranks[0]:
        assert (one["table some"] == 2).all() and one["facts"][3] == 1


def test_numbers_that_the_host_decides_by_are_the_same_everywhere(ranks):
    found, world = ranks[0], len(ranks[0])
    for one in found:
        assert one["facts"][4:7].tolist() == [7, world - 1, 1] and (one["copied"] == 0).all()
    assert {float(one["table a"]) for one in found[1:]} == {0.5 * sum(range(world))}


def test_a_process_that_is_gone_ends_the_others_with_a_sentence_and_a_whole_checkpoint(ranks):
    assert ranks[0][0]["facts"][7:].tolist() == [1, 1]


def test_a_single_process_exchanges_nothing():
    parameter, add = nn.Parameter(torch.zeros(2)), GradientSum()
    assert add([parameter], {"a": torch.tensor(1.0)}, ["a"]) == {"a": torch.tensor(1.0)} and add.sent == {}
    assert parameter.grad is None and ours.shards() == (Shard(),)
    assert (ours.largest(3.0), ours.from_first(4)) == (3.0, 4)


if __name__ == "__main__":
    process(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
