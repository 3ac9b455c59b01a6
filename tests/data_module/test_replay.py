import json

import pytest

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.replay import match_problems, merge, read_replay_buffer


def problem(name):
    return Problem(0, name, "Q", "1")


def test_a_buffer_is_read_without_empty_and_repeated_responses(tmp_path):
    path = tmp_path / "replay_buffer_0.25.json"
    path.write_text(json.dumps({"set-1": ["a", "b", "a", ""], "set-2": []}, indent=4))
    assert read_replay_buffer(path) == {"set-1": ["a", "b"], "set-2": []}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1]", "must hold an object of lists of responses, got list"),
        ('{"set-1": "a"}', "'set-1' must have a list of response texts, got str"),
        ('{"set-1": [1]}', "'set-1' must have a list of response texts, got list"),
        ('{"set-1": ["a"]', "is not valid JSON"),
    ],
)
def test_other_files_are_refused(text, message, tmp_path):
    path = tmp_path / "buffer.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_replay_buffer(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_replay_buffer(tmp_path / "other.json")


def test_problems_are_found_by_id_and_by_row_of_the_same_set():
    ours = [problem(name) for name in ("deepmath103k-224", "deepmath103k-2240", "gsm8k-224", "x", "9", "a-7", "b-a-7")]
    ids = ["zwhe99--DeepMath-103K-224", "zwhe99--DeepMath-103K-24", "x", "9", "other-2240", "c-b-a-7", "224"]
    found = {key: value.id for key, value in match_problems(ids, ours).items()}
    # "c-b-a-7" could be two of ours, "other" and no name at all are none of them.
    assert found == {"zwhe99--DeepMath-103K-224": "deepmath103k-224", "x": "x", "9": "9"}


def test_later_buffers_come_first():
    assert merge([{"a": ["1", "2"]}, {"a": ["3", "1"], "b": ["4"]}]) == {"a": ["3", "1", "2"], "b": ["4"]}
