import gzip
import json

import pyarrow
import pyarrow.parquet
import pytest

from deepsearch_jax.data import problems as problems_module
from deepsearch_jax.data.problems import (
    Columns,
    Problem,
    ProblemSettings,
    fingerprint,
    load_problem_set,
    load_problems,
    problem_keys,
    read_exclude_ids,
    split_problems,
)

ROWS = [
    {"id": "a-1", "question": "What is $1+1$?", "answer": "2", "source": "hand", "level": 1},
    {"id": "a-2", "question": "Luminosity?\u2028In erg/s", "answer": "4.5e33", "answer_latex": r"4.5 \times 10^{33}"},
    {"id": "a-3", "question": "Yes or no?", "answer": "Yes", "answer_latex": None, "source": "hand"},
]


def write_lines(path, rows):
    text = "".join((row if isinstance(row, str) else json.dumps(row, ensure_ascii=False)) + "\n" for row in rows)
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


@pytest.fixture(params=[".jsonl", ".jsonl.gz", ".json", ".parquet"])
def any_format(request, tmp_path):
    path = tmp_path / f"set{request.param}"
    if request.param == ".json":
        path.write_text(json.dumps(ROWS))
    elif request.param == ".parquet":
        columns = {
            name: [row.get(name) for row in ROWS] for name in ("id", "question", "answer", "answer_latex", "source")
        }
        pyarrow.parquet.write_table(pyarrow.table({**columns, "level": [1, None, None]}), path)
    else:
        write_lines(path, ROWS)
    return path


def test_every_format_gives_the_same_problems(any_format):
    got = load_problems(any_format)
    assert [(p.id, p.question, p.answer, p.source) for p in got] == [
        ("a-1", "What is $1+1$?", "2", "hand"),
        ("a-2", "Luminosity?\u2028In erg/s", r"4.5 \times 10^{33}", "set"),
        ("a-3", "Yes or no?", "Yes", "hand"),
    ]
    assert got[0].metadata["level"] == 1
    assert got[1].metadata["answer"] == "4.5e33"


def test_columns_can_be_renamed_and_nested(tmp_path):
    row = {"prompt": "Q", "reward_model": {"gold": "7"}, "n": 5}
    path = write_lines(tmp_path / "verl.jsonl", [row])
    mapping = {"question": "prompt", "answer": "reward_model.gold", "id": "n"}
    (got,) = load_problems(path, columns=mapping)
    assert (got.id, got.question, got.answer) == ("5", "Q", "7")
    with pytest.raises(ValueError, match=r"unknown field 'text' in the column mapping; known fields are .*question"):
        load_problems(path, columns={"text": "prompt"})
    with pytest.raises(ValueError, match=r"verl\.jsonl line 1: no field 'key'; the record has 'prompt'"):
        load_problems(path, columns=Columns(question=("prompt",), answer=("n",), id=("key",)))


def test_an_answer_behind_its_rationale_is_found(tmp_path):
    rows = [{"question": "q", "answer": "48/2 = 24. #### no\n#### 72"}, {"question": "r", "answer": "#### "}]
    path = write_lines(tmp_path / "gsm8k.jsonl", rows[:1])
    assert [problem.answer for problem in load_problems(path)] == ["72"]
    with pytest.raises(ValueError, match="'answer' is empty"):
        load_problems(write_lines(tmp_path / "empty.jsonl", rows))


def test_rows_without_id_are_named_after_file_and_row(tmp_path):
    path = write_lines(
        tmp_path / "plain.jsonl", ["", {"question": "Q", "answer": "1"}, {"problem": "R", "answer": "2"}]
    )
    assert [p.id for p in load_problems(path)] == ["plain-0", "plain-1"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROWS[0], '{"id": "x", "question"'], r"bad\.jsonl line 2: not valid JSON \(.* at column 23\)"),
        ([ROWS[0], "", [1]], r"bad\.jsonl line 3: expected an object with named fields, got list \[1\]"),
        (
            [{"id": "x", "answer": "1"}],
            r"line 1: no field 'question', 'problem', 'prompt' for the question; the record has 'id'",
        ),
        (
            [{"id": "x", "question": "Q"}],
            r"line 1: no field 'answer_latex', 'answer', 'reward_model.ground_truth' for the answer",
        ),
        ([{"id": "x", "question": "Q", "answer": 72}], r"line 1: field 'answer' must be text, got int 72"),
        ([{"id": "x", "question": "Q", "answer": None}], r"line 1: field 'answer' must be text, got NoneType None"),
        ([{"id": "x", "question": ["Q"], "answer": "1"}], r"line 1: field 'question' must be text, got list \['Q'\]"),
        ([{"id": "x", "question": "Q", "answer": " "}], r"line 1: field 'answer' is empty; .* exclude its id 'x'"),
        (
            [{"id": 1.5, "question": "Q", "answer": "1"}],
            r"line 1: field 'id' must be text or a whole number",
        ),
        ([{"id": "x", "question": "Q", "answer": "1", "source": 3}], r"line 1: field 'source' must be text, got int 3"),
        (['{"id": "x", "question": "\\ud800", "answer": "1"}'], r"line 1: field 'question' holds a character"),
        ([ROWS[0], ROWS[2], ROWS[0]], r"bad\.jsonl line 3: id 'a-1' was already used at .*bad\.jsonl line 1"),
        ([], r"bad\.jsonl is empty"),
        (["", "  "], r"bad\.jsonl is empty"),
    ],
)
def test_a_malformed_file_is_refused_with_file_line_and_field(tmp_path, rows, message):
    with pytest.raises(ValueError, match=message):
        load_problems(write_lines(tmp_path / "bad.jsonl", rows))


def test_unreadable_files_are_refused(tmp_path):
    half = tmp_path / "half.jsonl.gz"
    half.write_bytes(gzip.compress(json.dumps(ROWS[0]).encode() * 50)[:-20])
    latin = tmp_path / "latin.jsonl"
    latin.write_bytes(b'{"question": "caf\xe9"}')
    (tmp_path / "object.json").write_text('{"question": "Q"}')
    (tmp_path / "cut.json").write_text('[{"question": "Q"},\n')
    (tmp_path / "cut.parquet").write_bytes(b"PAR1")
    (tmp_path / "table.csv").write_text("question,answer\n")
    for name, message in [
        ("half.jsonl.gz", r"half\.jsonl\.gz is damaged or only half downloaded"),
        ("latin.jsonl", r"latin\.jsonl is not UTF-8 text"),
        ("object.json", r"must hold a list of objects, got dict"),
        ("cut.json", r"cut\.json line 2: not valid JSON"),
        ("cut.parquet", r"not a readable parquet file"),
        ("table.csv", r"unknown format; known endings are \.jsonl"),
        ("absent.jsonl", r"absent\.jsonl does not exist"),
        ("absent*.jsonl", r"no problem file matches the pattern .*absent\*"),
        ("", r"is a folder; name a file or a pattern"),
    ]:
        with pytest.raises(ValueError, match=message):
            load_problems(tmp_path / name)
    with pytest.raises(ValueError, match="no problem file given"):
        load_problems([])


def test_patterns_limit_and_exclusion(tmp_path):
    write_lines(tmp_path / "b.jsonl", [{"id": f"b-{i}", "question": "Q", "answer": "1"} for i in range(3)])
    write_lines(tmp_path / "a.jsonl", [{"id": "a-0", "question": "Q", "answer": 5}, ROWS[0]])
    pattern = str(tmp_path / "[ab].jsonl")
    # The excluded row is malformed: it must not be looked at.
    assert [p.id for p in load_problems(pattern, exclude_ids={"a-0", "b-1"})] == ["a-1", "b-0", "b-2"]
    assert [p.id for p in load_problems(pattern, exclude_ids={"a-0", "b-1"}, limit=2)] == ["a-1", "b-0"]
    with pytest.raises(ValueError, match="are excluded"):
        load_problems(tmp_path / "b.jsonl", exclude_ids={"b-0", "b-1", "b-2"})


def test_exclude_file_lists_may_be_arrays_or_objects(tmp_path):
    path = tmp_path / "exclude.json"
    path.write_text(json.dumps({"_about": "a remark", "empty": ["x"], "contaminated": {"y": "eval-1"}}))
    assert read_exclude_ids(path) == {"x", "y"}
    assert read_exclude_ids(path, ("contaminated",)) == {"y"}
    with pytest.raises(ValueError, match="has no list 'emtpy'; it has 'empty', 'contaminated'"):
        read_exclude_ids(path, ("emtpy",))
    path.write_text('{"empty": "x"}')
    with pytest.raises(ValueError, match="'empty' must be a list of ids, got str 'x'"):
        read_exclude_ids(path)
    with pytest.raises(ValueError, match="does not exist"):
        read_exclude_ids(tmp_path / "none.json")


def test_keys_are_stable_int32_and_distinct_where_hashes_collide(monkeypatch):
    # A key must not change from version to version. These are what `printf ID | b2sum -l 32` prints.
    assert problem_keys(["gsm8k-train-0", "aime24-I-1"]) == [0x30D99E14, 0x24329BF7]
    keys = problem_keys([str(i) for i in range(3000)])
    assert len(set(keys)) == 3000
    assert 0 <= min(keys) <= max(keys) < 2**31
    monkeypatch.setattr(problems_module, "_hash31", lambda text, salt=0: len(text) + 10 * salt)
    assert problem_keys(["b", "cc", "a"]) == [11, 2, 1]
    assert problem_keys(["a", "b", "cc"]) == [1, 11, 2]
    with pytest.raises(ValueError, match="unique"):
        problem_keys(["a", "a"])


def make(n):
    return [Problem(i, f"id-{i}", f"Q{i}", str(i)) for i in range(n)]


def test_split_is_deterministic_disjoint_and_does_not_depend_on_order():
    problems = make(50)
    train, held_out = split_problems(problems, 10, seed=3)
    assert (len(train), len(held_out)) == (40, 10)
    assert sorted(train + held_out, key=lambda p: p.key) == problems
    assert train == sorted(train, key=lambda p: p.key)
    assert {p.id for p in split_problems(problems[::-1], 10, seed=3)[1]} == {p.id for p in held_out}
    assert {p.id for p in split_problems(problems, 10, seed=4)[1]} != {p.id for p in held_out}
    assert split_problems(problems, 0, seed=3) == (problems, [])
    with pytest.raises(ValueError, match=r"num_validation=50 of 50 .* from 0 to 49"):
        split_problems(problems, 50, seed=3)


def test_fingerprint_notices_text_and_order():
    problems = make(3)
    changed = [*problems[:2], Problem(2, "id-2", "Q2", "3")]
    assert (
        len({fingerprint(problems), fingerprint(problems[::-1]), fingerprint(changed), fingerprint(problems[:2])}) == 4
    )
    assert fingerprint(problems) == fingerprint(make(3))


def test_settings_refuse_nonsense_and_accept_single_names():
    assert ProblemSettings(paths="x.jsonl").paths == ("x.jsonl",)  # type: ignore[arg-type]
    assert hash(ProblemSettings()) == hash(ProblemSettings())
    with pytest.raises(ValueError, match="limit=-1"):
        ProblemSettings(limit=-1)
    with pytest.raises(ValueError, match=r"columns\.answer=\(\)"):
        Columns(answer=())


def test_the_shared_problem_sets_load(shared_dir):
    rows = {"aime24": 30, "amc23": 40, "math500": 500, "minerva": 272, "olympiadbench": 675}
    for name, count in rows.items():
        assert len(load_problems(shared_dir / "data" / "eval" / f"{name}.jsonl.gz")) == count
    minerva = load_problems(shared_dir / "data" / "eval" / "minerva.jsonl.gz")
    assert sum(p.answer != p.metadata.get("answer", p.answer) for p in minerva) == 58
    train = shared_dir / "data" / "train"
    with pytest.raises(ValueError, match=r"pass00\.jsonl\.gz line 860: field 'answer' is empty"):
        load_problems(train / "deepmath_round0_pass00.jsonl.gz")
    settings = ProblemSettings(
        (str(train / "deepmath_round0_*"),), exclude_file=str(shared_dir / "data/exclude_ids.json")
    )
    problems = load_problem_set(settings)
    assert len(problems) == 19365  # of 20504
    assert len({p.key for p in problems}) == len(problems)


def test_entries_of_a_mixture_keep_their_component_and_may_share_ids(tmp_path):
    for name in ("one", "two"):
        rows = [{"id": i, "question": f"{name} {i}", "answer": str(i)} for i in range(3)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    paths = (str(tmp_path / "one.jsonl"), str(tmp_path / "tw?.jsonl"))
    problems = load_problem_set(ProblemSettings(paths=paths, weights=(3.0, 1.0), limit=2))
    assert [(p.id, p.component) for p in problems] == [("0/0", 0), ("0/1", 0), ("1/0", 1), ("1/1", 1)]
    assert len({p.key for p in problems}) == 4
    with pytest.raises(ValueError, match="already used"):
        load_problem_set(ProblemSettings(paths=paths))


@pytest.mark.parametrize("weights", [(1.0,), (1.0, 0.0), (1.0, -1.0), (1.0, float("nan"))])
def test_weights_are_one_positive_number_an_entry(weights):
    with pytest.raises(ValueError, match="for each of the 2 entries"):
        ProblemSettings(paths=("a.jsonl", "b.jsonl"), weights=weights)


def test_weights_are_of_one_size():
    ProblemSettings(paths=("a.jsonl", "b.jsonl"), weights=(1000.0, 1.0))
    with pytest.raises(ValueError, match="differ by more than a factor of 1000"):
        ProblemSettings(paths=("a.jsonl", "b.jsonl"), weights=(1001.0, 1.0))


def test_a_dataset_of_the_hub_is_fetched_by_name(tmp_path, monkeypatch):
    """What huggingface_hub would fetch lies in a folder; the pattern is what it is asked for."""
    asked = []

    def snapshot_download(repository, *, repo_type, allow_patterns):
        asked.append((repository, repo_type, allow_patterns))
        return str(tmp_path)

    (tmp_path / "main").mkdir()
    (tmp_path / "main" / "train-0.jsonl").write_text('{"question": "1+1", "answer": "2"}\n')
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    problems = load_problem_set(ProblemSettings(paths=("hf:openai/gsm8k:main/train*",)))
    assert [(p.question, p.answer) for p in problems] == [("1+1", "2")]
    load_problem_set(ProblemSettings(paths=("hf:openai/gsm8k",)))
    assert asked == [
        ("openai/gsm8k", "dataset", ["main/train*"]), ("openai/gsm8k", "dataset", ["*train*"]),
    ]  # fmt: skip


def test_without_a_network_the_way_out_is_told(monkeypatch):
    def snapshot_download(*args, **kwargs):
        raise OSError("network is unreachable\nand more")

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    with pytest.raises(ValueError, match=r"network is unreachable.*hf download openai/gsm8k.*path of a file"):
        load_problem_set(ProblemSettings(paths=("hf:openai/gsm8k",)))
