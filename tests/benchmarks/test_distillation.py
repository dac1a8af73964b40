"""The comparison of distillation methods: its table, its page, and that it goes on where it stopped."""

import json
import sys

import numpy as np
import pytest

from benchmarks import distillation
from benchmarks.comparison import sheet
from benchmarks.distillation import BEGIN, END, METHODS, table, write
from guidance.distillation import METHODS as REGISTRY
from tests.benchmarks.comparison_rows import BUDGET, record, row


def test_every_method_of_the_program_is_compared():
    flags = [words.split() for words in METHODS.values()]
    assert {words[words.index("--distillation") + 1] for words in flags} == set(REGISTRY)


def test_a_mean_leaves_out_where_a_measure_is_not_defined():
    rows = record(row("SDS", "a pink car", janus=0.4), row("SDS", "a hamburger", iou=0.7))
    (line,) = [line for line in table(rows, BUDGET).splitlines() if line.startswith("| SDS | 0.600")]
    assert "| 0.40 |" in line and line.endswith("| 2 |")


def test_a_failed_run_is_counted_and_other_budgets_are_not_shown():
    failed = {"method": "SDI", "prompt": "a pink car", "budget": BUDGET, "seed": 0, "failure": "exit code 1"}
    text = table(record(row("SDS", "a pink car"), failed, row("CSD", "a pink car", budget="9 steps")), BUDGET)
    assert "| SDI | - |" in text and "0, 1 failed" in text and "CSD" not in text


def test_the_table_replaces_what_was_between_its_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"above\n{BEGIN}old\n{END}below\n")
    write(record(row("SDS", "a pink car")), BUDGET, tmp_path, page, tmp_path)
    text = page.read_text()
    assert text.startswith("above\n") and text.endswith("below\n") and "old" not in text and "| SDS | 0.500" in text
    assert (tmp_path / "distillation.png").is_file()


def test_a_sheet_has_the_truth_and_a_grey_place_for_what_is_missing(tmp_path):
    picture = sheet(record(row("SDS", "a pink car"), row("SDI", "a pink car")), METHODS, BUDGET, tmp_path, size=16)
    assert picture.shape == (16, 16 * 2 * 3, 3)  # the truth and the two methods that have run
    assert (picture[:, 32:] == 128).all() and np.std(picture[:, :32]) > 1


@pytest.mark.parametrize("minutes", ["0", "9"])
def test_what_was_measured_is_not_repeated(tmp_path, monkeypatch, capsys, minutes):
    runs = []

    def run(method, words, prompt, seed, work, steps, budget, extra):
        runs.append((method, prompt, steps))
        return row(method, prompt, steps=steps)

    monkeypatch.setattr(distillation, "measured", run)
    page = tmp_path / "page.md"
    page.write_text(BEGIN + END)
    places = ["--work", str(tmp_path), "--out", str(tmp_path), "--page", str(page), "--iters", "5", "--methods", "SDS", "CSD"]
    for prompts in (["a pink car"], ["a pink car", "a hamburger"]):
        monkeypatch.setattr(sys, "argv", ["x", *places, "--minutes", minutes, "--prompts", *prompts])
        distillation.main()
    if minutes == "0":
        assert runs == [] and "remaining 4 runs" in capsys.readouterr().out
        return
    assert runs == [("SDS", "a pink car", 5), ("CSD", "a pink car", 5), ("SDS", "a hamburger", 5), ("CSD", "a hamburger", 5)]
    assert len(json.loads((tmp_path / "distillation.json").read_text())) == 4
