"""The comparison of measures against the Janus problem: its ways, its table, and that it goes on where it stopped."""

import json
import sys
from functools import partial

import numpy as np
import pytest

from benchmarks import janus, mesh_measure
from benchmarks.janus import HELD_OUT, TUNING, WAYS, table, write
from guidance.prior.captions import BENCHMARK_PROMPTS
from guidance.prior.shapes import canonical
from nerf.config.config import parse
from tests.benchmarks import comparison_rows
from tests.benchmarks.comparison_rows import BUDGET, record

row = partial(comparison_rows.row, janus=0.4)


def test_each_way_is_a_command_line_that_differs_from_the_others():
    options = [parse(["--text", "a dog", *words.split()]).guidance for words in WAYS.values()]
    told = [(o.guidance[0], o.prior_views, o.perpneg) for o in options]
    assert len(set(told)) == len(WAYS) and {o.prior_views for o in options} == {"camera", "words", "none"}


@pytest.mark.parametrize("prompt", [*TUNING, *HELD_OUT])
def test_every_prompt_has_a_front_and_colours_that_were_not_trained(prompt):
    truth, _ = mesh_measure.true_views(canonical(prompt), mesh_measure.view_angles(8))
    assert mesh_measure.front_likeness(truth, truth) == 0
    assert np.abs(truth[0] - truth[4]).mean() > 2 * mesh_measure.SAME_SIDES
    assert prompt in dict(BENCHMARK_PROMPTS) and not set(TUNING) & set(HELD_OUT)


def test_the_score_of_a_shape_with_two_fronts_is_one():
    truth, _ = mesh_measure.true_views(canonical("a blue dog"), mesh_measure.view_angles(8))
    seen = truth.copy()
    seen[4] = truth[0]
    assert mesh_measure.front_likeness(seen, truth) == 1


def test_the_table_has_the_halves_apart_and_counts_failures():
    failed = {"method": "view words", "prompt": HELD_OUT[0], "budget": BUDGET, "seed": 0, "failure": "exit code 1"}
    rows = record(
        row("camera", TUNING[0], janus=0.2), row("camera", HELD_OUT[0], janus=0.6), row("view words", TUNING[0]), failed
    )
    text = table(rows, BUDGET).splitlines()
    assert any(line.startswith("| camera | 0.40 | 1.00 | 0.500 |") and line.endswith("| 2 |") for line in text)
    assert "| camera | 0.20 | 0.60 | 0.20 | 0.60 |" in text and f"{HELD_OUT[0]} (held out)" in "".join(text)
    assert any(line.startswith("| view words |") and line.endswith("| 1, 1 failed |") for line in text)
    assert not any("Perp-Neg" in line for line in text) and "camera" not in table(rows, "6 steps")


def test_record_table_and_pictures_are_written(tmp_path):
    write(record(row("camera", TUNING[0])), BUDGET, tmp_path, tmp_path)
    assert len(json.loads((tmp_path / "janus.json").read_text())) == 1
    assert "| camera | 0.40" in (tmp_path / "janus.md").read_text() and (tmp_path / "janus.png").is_file()


@pytest.mark.parametrize("minutes", ["0", "9"])
def test_what_was_measured_is_not_repeated(tmp_path, monkeypatch, capsys, minutes):
    done = []

    def run(way, words, prompt, seed, work, steps, budget, extra):
        done.append((way, words, prompt))
        return row(way, prompt, steps=steps)

    monkeypatch.setattr(janus.comparison, "measured", run)
    places = ["--work", str(tmp_path), "--out", str(tmp_path), "--iters", "5", "--ways", "camera", "view words"]
    for prompts in (TUNING[:1], TUNING):
        monkeypatch.setattr(sys, "argv", ["x", *places, "--minutes", minutes, "--prompts", *prompts])
        janus.main()
    if minutes == "0":
        assert done == [] and "remaining 4 runs" in capsys.readouterr().out
        return
    assert [(way, prompt) for way, _, prompt in done] == [(w, p) for p in TUNING for w in ("camera", "view words")]
    assert all(words == WAYS[way] for way, words, _ in done)
