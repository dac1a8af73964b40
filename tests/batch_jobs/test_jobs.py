"""Reading jobs: prompts, CSV, JSONL, seeds, names of folders, and one sentence with the line for what is wrong."""

import pytest

from batch_jobs.jobs import Row, as_words, expand, read_rows
from nerf.config import config as options
from nerf.core.errors import UserError
from tests.helpers.scripts import load_script


def jobs_of(tmp_path, name, text, common=(), seeds=None):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    return expand(read_rows(path), list(common), seeds)


def config_of(job):
    return options.parse([*job.words, "--workspace", "w"])


def test_a_text_file_is_a_prompt_a_line_without_empty_lines_and_comments(tmp_path):
    jobs = jobs_of(tmp_path, "jobs.txt", "a red car\n\n# later\n  a mug, -1 handles \n", ["--iters", "7"])
    assert [job.title for job in jobs] == ["a red car", "a mug, -1 handles"]
    assert [job.place.rpartition(", ")[2] for job in jobs] == ["line 1", "line 4"]
    assert config_of(jobs[1]).prompt.text == "a mug, -1 handles" and config_of(jobs[1]).optim.iters == 7


def test_a_csv_has_any_flag_as_a_column(tmp_path):
    text = 'text,iters,fovy_range,O,negative\n"a car, red",30,10 20,yes,\na mug,,,no,-blurry\n'
    first, second = (config_of(job) for job in jobs_of(tmp_path, "jobs.csv", text, ["--iters", "7", "-O"]))
    assert (first.prompt.text, first.optim.iters, first.camera.fovy_range, first.runtime.O) == (
        "a car, red",
        30,
        (10, 20),
        True,
    )
    assert (second.optim.iters, second.runtime.O, second.prompt.negative) == (7, False, "-blurry")


def test_a_jsonl_has_values_lists_and_switches(tmp_path):
    first = '{"text": "a car", "negative": "a\u2028b", "fovy_range": [10, 20], "fp16": false, "name": "best.car"}'
    jobs = jobs_of(tmp_path, "jobs.jsonl", first + '\n\n{"text": "a mug", "iters": null, "seed": 4}\n')
    assert jobs[0].name == "best.car" and config_of(jobs[0]).camera.fovy_range == (10, 20)
    assert config_of(jobs[0]).asked("fp16") and config_of(jobs[1]).runtime.seed == 4 == jobs[1].seed


def test_seeds_multiply_every_row_and_share_a_group(tmp_path):
    jobs = jobs_of(tmp_path, "jobs.csv", "text,seed\na car,\na mug,5\n", seeds=2)
    assert [(job.name.split("_seed")[0], job.seed) for job in jobs] == [("a_car", 0), ("a_car", 1), ("a_mug", 5), ("a_mug", 6)]
    assert jobs[0].group == jobs[1].group != jobs[2].group == jobs[3].group
    assert [config_of(job).runtime.seed for job in jobs] == [0, 1, 5, 6]


def test_one_prompt_and_seeds_need_no_file():
    jobs = expand([Row("the command line", {})], ["--text", "a car", "-O"], 4)
    assert [job.name for job in jobs] == [f"a_car_seed{seed}" for seed in range(4)]


def test_the_name_of_a_folder_depends_on_its_row_alone(tmp_path):
    (alone,) = jobs_of(tmp_path, "a.csv", "text,iters\na car,30\n")
    among = jobs_of(tmp_path, "b.csv", "text,iters\na car,\na car,60\na car,30\nA car!,\n")
    assert alone.name == among[2].name and len({job.name for job in among}) == 4


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("a.txt", "a car\na mug\na car\n", "line 3 is the same job as a.txt, line 1; leave one of them out"),
        ("a.txt", "\n# a car\n", "a.txt holds no job; give a text file with a prompt a line"),
        (
            "a.csv",
            "text,itres\na car,3\n",
            "a column is called 'itres', which is no flag of main.py; did you mean iters?",
        ),
        ("a.csv", "text,--iters\na car,3\n", "line 1: a column is called '--iters', which is no flag of main.py; write iters"),
        ("a.csv", "text,iters\na car,3\na mug,-1\n", "line 3: --iters must be between"),
        ("a.csv", "text,iters\na car,3\na mug,x\n", "line 3: --iters must be a whole number, got 'x'"),
        ("a.csv", "text,O\na car,maybe\n", "line 2: O is a switch, true or false, and got 'maybe'"),
        ("a.csv", "text\na car, red\n", "line 2 has 2 columns, and the first line names 1; put a value with a comma"),
        ("a.csv", 'text\n"a car\n', "is not CSV"),
        ("a.csv", "text,text\na,b\n", "line 1 names the column text twice"),
        ("a.csv", "text,workspace\na,b\n", "line 1: --workspace: a batch gives every job a folder in --out"),
        ("a.csv", "text,fp16,bf16\na,1,1\n", "line 2: --fp16 and --bf16 exclude each other"),
        ("a.csv", "text,device\na,cuda:1\n", "line 2: --device cuda:1: Ray chooses the GPU of a job"),
        ("a.csv", "text,name\na,x/y\n", "line 2: name must be letters, digits, dots, - and _, at most 100, got 'x/y'"),
        ("a.csv", "text,name\na,index.html\n", "line 2: name index.html is that of a file of the batch"),
        ("a.csv", "text,name\na,X\nb,x\n", "line 3 is called x as is a.csv, line 2"),
        ("a.jsonl", '{"text": "a"}\n{"text": }\n', "line 2 is not valid JSON"),
        ("a.json", '["a"]\n', 'line 1: expected an object such as {"text": "a hamburger"}'),
        ("a.jsonl", '{"text": "a", "fovy_range": []}\n', "line 1: fovy_range is a value or a list of values"),
        ("a.jsonl", '{"text": "a", "O": "yes"}\n', "line 1: O is a switch, true or false"),
        ("a.jsonl", '{"text": "a", "name": 3}\n', "line 1: name is the name of a folder, got 3"),
    ],
)
def test_what_is_wrong_is_one_sentence_with_the_line(tmp_path, monkeypatch, name, text, sentence):
    monkeypatch.chdir(tmp_path)
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as caught:
        expand(read_rows((tmp_path / name).relative_to(tmp_path)), [], None)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("common", "sentence"),
    [
        (["--ckpt", "scratch"], "--ckpt: a job goes on from its own newest checkpoint"),
        (["--gui"], "--gui: nobody looks at the jobs of a batch"),
        (["--test"], "--test: a batch trains"),
        (["--itres", "4"], "unknown flag --itres"),
        (["--help"], "python main.py --help"),
    ],
)
def test_flags_of_all_jobs_are_checked_too(common, sentence):
    with pytest.raises(UserError) as caught:
        expand([Row("a.txt, line 1", {"text": "a"})], common, None)
    assert sentence in str(caught.value)


def test_a_flag_of_main_py_among_those_of_the_batch_is_told_its_place(capsys):
    with pytest.raises(SystemExit):
        load_script("batch").parser_of().parse_args(["--out", "x", "--iters=4"])
    assert "--iters is a flag of main.py; write it behind all others and --, as in -- --iters" in capsys.readouterr().err


def test_a_file_that_cannot_be_read_is_a_sentence(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"a\0car")
    for path, said in ((tmp_path / "none.txt", "none.txt"), (tmp_path / "a.txt", "is not a text file")):
        with pytest.raises(UserError, match="give a text file with a prompt a line") as caught:
            read_rows(path)
        assert said in str(caught.value)


def test_the_command_line_of_a_job_has_its_folder_and_its_own_threads_before_those_of_the_batch(tmp_path):
    (job,) = expand([Row("a", {"text": "a car", "threads": 3})], [], None)
    asked = options.parse(as_words(job, tmp_path / "out", 2))
    assert asked.runtime.threads == 3 and asked.output.workspace == str(tmp_path / "out")
    (job,) = expand([Row("a", {"text": "a car"})], [], None)
    assert options.parse(as_words(job, tmp_path, 2)).runtime.threads == 2
