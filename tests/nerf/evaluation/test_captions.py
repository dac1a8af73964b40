"""Lists of captions in text files."""

import pytest

from nerf.core.errors import UserError
from nerf.evaluation.captions import normalised, pool_of, read_captions


def write(tmp_path, text):
    path = tmp_path / "captions.txt"
    path.write_text(text, encoding="utf-8")
    return path


def test_comments_empty_lines_and_repetitions_are_left_out(tmp_path):
    path = write(tmp_path, "# benchmark\n a lion \n\nA Lion.\na café\n")
    assert read_captions(path) == ["a lion", "a café"]


def test_the_prompt_is_found_in_the_list_or_added_behind_it():
    assert pool_of(["a lion", "a dog"], "A  dog.") == (["a lion", "a dog"], 1)
    assert pool_of(["a lion"], "a cat") == (["a lion", "a cat"], 1)
    assert normalised(" A Dog., ") == "a dog"


@pytest.mark.parametrize("text", ["", "a lion\n", "# only\n# comments\n"])
def test_fewer_than_two_captions_are_refused(tmp_path, text):
    with pytest.raises(UserError, match="2 to 100,000 are needed"):
        read_captions(write(tmp_path, text))


def test_a_missing_file_is_a_sentence(tmp_path):
    with pytest.raises(UserError, match="a caption on each line"):
        read_captions(tmp_path / "none.txt")
