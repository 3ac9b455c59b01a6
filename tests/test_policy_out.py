"""Taking a policy out of a workdir and talking to it: a small model trained on the example of docs/tasks.md."""

import dataclasses
import io
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file

from deepsearch_jax import policy
from deepsearch_jax.config import to_config
from deepsearch_jax.data.texts import END, PADDING, TextSettings
from deepsearch_jax.data.tokenizers import CharTokenizer, HFTokenizer
from deepsearch_jax.objective import AdvantageSettings
from deepsearch_jax.policy import LoraSettings
from deepsearch_jax.runtime import (
    ChatSettings,
    CheckpointSettings,
    Conversation,
    EvaluationSettings,
    Interrupted,
    SavedPolicy,
    Talker,
    load_saved,
    run,
    visible,
)
from deepsearch_jax.runtime.chat import most_frequent, search_settings
from deepsearch_jax.runtime.export import write_character_tokenizer
from deepsearch_jax.runtime.metrics import read_rows
from deepsearch_jax.runtime.tasks import TaskSettings
from experiments import chat, export
from tests.conftest import REPOSITORY
from tests.model_parity import greedy_over_rows
from tests.runtime.conftest import tiny_settings
from tests.runtime.test_text_tasks import example_of_the_docs


def train(folder, **changes):
    """A short run of the task of the docs; its settings and workdir."""
    (folder / "backwards.py").write_text(example_of_the_docs())
    settings = tiny_settings()
    settings = dataclasses.replace(
        settings,
        task=TaskSettings(
            name=f"{folder / 'backwards.py'}:Backwards", options="letters='ab', length=4",
            correct_from=0.6,
            text=TextSettings(warm_start_steps=12, warm_start_batch_size=8, warm_start_learning_rate=1e-2),
        ),
        method="grpo",
        advantage=AdvantageSettings(level="outcome", normalisation="mean_std"),
        rounds=dataclasses.replace(settings.rounds, num_rounds=1, filter_problems=False),
        checkpoint=CheckpointSettings(every_steps=1, keep=4),
        evaluation=EvaluationSettings(every_steps=1, num_problems=4, num_samples=1),
        **changes,
    )  # fmt: skip
    assert run(settings, to_config(settings).to_dict(), folder / "run")
    return settings, folder / "run"


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    return train(tmp_path_factory.mktemp("own task"))[1]


@pytest.fixture(scope="module")
def exported(workdir):
    assert export.main([str(workdir), "--out", str(workdir.parent / "exported")]) == 0
    return workdir.parent / "exported"


def talk(monkeypatch, capsys, text, *arguments):
    """What `experiments.chat` prints for these lines of input."""
    monkeypatch.setattr("sys.stdin", io.StringIO(text))
    assert chat.main([*map(str, arguments)]) == 0
    return capsys.readouterr()


def test_the_task_of_the_docs_trains(workdir):
    rows = read_rows(workdir / "metrics.jsonl")
    assert [row["step"] for row in rows if row["kind"] == "train"] == [1, 2]
    assert sum(row["updates"] for row in rows if row["kind"] == "train") > 0
    assert 0 < rows[-1]["machine"]["task_mean_score"] <= 1


def test_the_directory_holds_the_parameters_of_the_checkpoint(workdir, exported):
    saved = load_saved(workdir)
    config, params = policy.load_pretrained(exported)
    assert config == dataclasses.replace(saved.model, compute_dtype="float32")
    equal = jax.tree.map(lambda a, b: bool((a == b).all()), params, saved.params)
    assert jax.tree.all(equal)


def test_transformers_reads_the_characters(workdir, exported):
    ours, theirs = load_saved(workdir).tokenizer, HFTokenizer(exported)
    assert isinstance(ours, CharTokenizer)
    assert theirs.encode("abba\nb") == ours.encode("abba\nb")
    assert theirs.encode_prompt([{"role": "user", "content": "ab"}]) == ours.encode("ab\n")
    assert theirs.decode([2, 3, 1, 4]) == ours.decode([2, 3, 1, 4])
    assert theirs.decode([2, 3, 1, 4], skip_special=False) == ours.decode([2, 3, 1, 4], skip_special=False)
    assert (theirs.eos_ids, theirs.pad_id, theirs.vocab_size) == (ours.eos_ids, ours.pad_id, ours.vocab_size)
    assert theirs.token_bytes() == ours.token_bytes()


@pytest.mark.parametrize("alphabet", [" \n0123456789+-*/=()abcXYZ'!", "数∑abc \n→"])
def test_tables_of_other_characters(alphabet, exported, tmp_path):
    ours = CharTokenizer(alphabet, eos=END, pad=PADDING)
    for file in ("config.json", "generation_config.json"):
        (tmp_path / file).write_text((exported / file).read_text())
    write_character_tokenizer(tmp_path, ours, "\n")
    theirs, text = HFTokenizer(tmp_path), alphabet + "\n\n" + alphabet[::-1] + "  c a"
    assert theirs.encode(text) == ours.encode(text)
    assert theirs.decode(ours.encode(text)) == text
    assert theirs.token_bytes() == ours.token_bytes()


def test_characters_that_byte_level_tables_mistake_are_refused(tmp_path):
    with pytest.raises(ValueError, match="'é' cannot be written"):
        write_character_tokenizer(tmp_path, CharTokenizer("eé"), "")


def test_another_step_and_the_best_one(workdir, tmp_path):
    rows = {row["step"]: row["pass_at_1"] for row in read_rows(workdir / "metrics.jsonl") if row["kind"] == "eval"}
    kept = {load_saved(workdir, str(step)).step for step in (1, 2)}
    assert kept == {1, 2}
    assert load_saved(workdir, "best").step == max(kept, key=lambda step: (rows[step], step))
    before, after = (jax.tree.leaves(load_saved(workdir, str(step)).params) for step in (0, 2))
    assert not all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    with pytest.raises(ValueError, match=r"--step=7: there are checkpoints of the steps \[0, 1, 2\]"):
        load_saved(workdir, "7")


def test_damage_of_a_checkpoint_that_is_not_read_is_in_nobodys_way(workdir, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    oldest = min((copy / "checkpoints").iterdir(), key=lambda path: int(path.name))
    (oldest / "record" / "metadata").write_text("{")
    assert load_saved(copy).step == 2


def damage(directory):
    """Changes a bit of the largest file, where the parameters are."""
    path = max((path for path in (directory / "arrays").rglob("*") if path.is_file()), key=lambda p: p.stat().st_size)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def test_a_damaged_checkpoint_is_never_read_and_never_touched(workdir, tmp_path, capsys):
    place = tmp_path / "run"
    shutil.copytree(workdir, place)
    numbers = sorted(int(path.name) for path in (place / "checkpoints").iterdir() if path.name.isdigit())
    damage(place / "checkpoints" / str(numbers[-1]))
    assert export.main([str(place), "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().err
    assert f"warning: checkpoint {numbers[-1]} is damaged: arrays/" in told
    assert f"Reading {numbers[-2]}" in told
    _, got = policy.load_pretrained(tmp_path / "out")
    step = json.loads((place / f"checkpoints/{numbers[-2]}/record/metadata").read_text())["position"]["step"]
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(load_saved(workdir, str(step)).params), strict=True):
        np.testing.assert_array_equal(one, other)
    with pytest.raises(ValueError, match=rf"can be used \(checkpoint {numbers[-1]}: arrays/.* was written\)"):
        load_saved(place, "2")
    for number in numbers[:-1]:
        (place / f"checkpoints/{number}/manifest.json").unlink()
    with pytest.raises(ValueError, match=rf"checkpoint {numbers[0]}: manifest\.json is missing"):
        load_saved(place)
    assert sorted(path.name for path in (place / "checkpoints").iterdir()) == sorted(map(str, numbers))


def test_weights_in_another_dtype(workdir, exported, tmp_path):
    assert export.main([str(workdir), "--out", str(tmp_path / "half"), "--dtype", "bfloat16"]) == 0
    tensors = load_file(tmp_path / "half" / "model.safetensors")
    assert {str(tensor.dtype) for tensor in tensors.values()} == {"bfloat16"}
    assert policy.load_config(tmp_path / "half") == policy.load_config(exported)


def test_nothing_is_overwritten_and_no_run_is_no_run(workdir, tmp_path, capsys):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").touch()
    assert export.main([str(workdir), "--out", str(tmp_path / "full")]) == 2
    assert "not an empty directory" in capsys.readouterr().err
    assert export.main([str(tmp_path / "full"), "--out", str(tmp_path / "new")]) == 2
    assert "no config.json" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


@pytest.mark.slow
def test_adapters_are_merged_as_the_run_merges_them(tmp_path):
    """The run writes its merged policy itself at the end: the export must give the same bits."""
    settings = tiny_settings()
    model = dataclasses.replace(settings.model, path=str(REPOSITORY / "tests/data/tiny_qwen2"))
    lora = LoraSettings(rank=2)
    _, place = train(tmp_path, model=model, lora=lora)
    assert export.main([str(place), "--out", str(tmp_path / "out")]) == 0
    want, got = (load_file(d / "model.safetensors") for d in (place / "policy", tmp_path / "out"))
    assert want.keys() == got.keys()
    assert all(np.array_equal(want[name], got[name]) for name in want)


@pytest.mark.slow
def test_a_greedy_answer_is_that_of_whole_rows(workdir, exported, monkeypatch, capsys):
    saved = load_saved(workdir)
    prompt = saved.tokenizer.encode("aab\n")
    params = jax.tree.map(jnp.asarray, saved.params)
    ids = greedy_over_rows(saved.model, params, prompt, 12)
    end = next((i for i, token in enumerate(ids) if token in saved.tokenizer.eos_ids), 12)
    want = saved.tokenizer.decode(ids[:end])
    for place in (workdir, exported):
        shown = talk(monkeypatch, capsys, "aab\n", place, "--temperature", 0, "--max-tokens", 12)
        assert shown.out == visible(want) + "\n"


def test_a_conversation_through_a_pipe(workdir, monkeypatch, capsys):
    lines = "\nab?\nab\n/reset\nba\n/quit\nbb\n"
    shown = talk(monkeypatch, capsys, lines, workdir, "--max-tokens", 9, "--temperature", 2)
    assert "character '?'" in shown.err
    again = talk(monkeypatch, capsys, lines, workdir, "--max-tokens", 9, "--temperature", 2)
    assert again.out == shown.out  # from the seed
    assert (
        talk(monkeypatch, capsys, lines, workdir, "--max-tokens", 9, "--temperature", 2, "--seed", 1).out != shown.out
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--temperature", "nan"), "temperature=nan must be >= 0 and finite"),
        (("--temperature", "-1"), "temperature=-1.0 must be >= 0 and finite"),
        (("--top-p", "3"), r"top_p=3.0 must be in (0, 1]"),
        (("--seed", str(2**64)), "must be at least 0 and below 2**32"),
        (("--max-tokens", "0"), "max_tokens=0 must be at least 1"),
        (("--max-tokens", "99999"), "leaves no room for a prompt"),
        (
            ("--search", "--temperature", "0"),
            "temperature=0 takes the likeliest token, so that all attempts of a search",
        ),
        (("--system", "a\udcff"), "the system message is no UTF-8 text (at character 2)"),
    ],
)
def test_settings_that_cannot_be_are_answered_before_the_first_question(workdir, arguments, words, capsys):
    assert chat.main([str(workdir), *arguments]) == 2
    assert words in capsys.readouterr().err


def test_the_length_of_answers_fits_a_model_of_few_positions(exported, monkeypatch, capsys):
    """The usual 1,024 tokens are more than the model has; nobody has asked for them."""
    assert policy.load_config(exported).max_position_embeddings < 1024
    assert talk(monkeypatch, capsys, "aab\n", exported).out.count("\n") >= 1


def test_no_input_at_all_is_no_question(workdir, monkeypatch, capsys):
    monkeypatch.setattr("sys.stdin", None)  # as with <&-
    assert chat.main([str(workdir)]) == 0
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])  # of locales with UTF-8, and of "C"
def test_bytes_that_are_no_text_do_not_end_the_conversation(exported, monkeypatch, capsys, errors):
    piped = io.TextIOWrapper(io.BytesIO(b"a\xff\xfe\nab\n"), encoding="utf-8", errors=errors)
    monkeypatch.setattr("sys.stdin", piped)
    assert chat.main([str(exported), "--max-tokens", "9"]) == 0
    shown = capsys.readouterr()
    assert shown.err.count("\n") == 1
    assert "the question is no UTF-8 text (at character 2); write it in UTF-8" in shown.err
    assert shown.out == talk(monkeypatch, capsys, "ab\n", exported, "--max-tokens", 9).out


@pytest.mark.parametrize(("asked", "depth", "length"), [(100, 2, 50), (65, 2, 33), (64, 1, 64), (9, 1, 9)])
def test_a_search_of_a_directory_may_answer_as_long_as_is_asked(asked, depth, length):
    found = search_settings(SavedPolicy(None, None, None, ""), ChatSettings(max_tokens=asked, trajectories=4))
    assert (found.max_depth, found.segment_length) == (depth, length)
    assert asked <= found.max_response_length < asked + depth
    assert found.token_budget == 4 * depth * length


@pytest.mark.parametrize(("asked", "depth", "length"), [(15, 3, 5), (7, 2, 4), (3, 1, 3), (21, 5, 5)])
def test_a_search_of_a_run_may_answer_as_long_as_is_asked(workdir, asked, depth, length):
    saved = load_saved(workdir)
    assert (saved.settings.search.max_depth, saved.settings.search.segment_length) == (3, 5)
    found = search_settings(saved, ChatSettings(max_tokens=asked, trajectories=4))
    assert (found.max_depth, found.segment_length) == (depth, length)


def test_a_search_does_not_turn_up_the_temperature(workdir):
    saved, settings = load_saved(workdir), ChatSettings(temperature=0.0, max_tokens=9)
    talker = Talker(saved.model, saved.params, saved.tokenizer, settings, search_settings(saved, settings))
    with pytest.raises(ValueError, match="do not search"):
        talker.search(saved.tokenizer.encode("aab\n"), lambda: None, print)


@pytest.mark.slow
def test_a_search_chooses_the_most_frequent_answer(workdir, monkeypatch, capsys):
    shown = talk(monkeypatch, capsys, "aab\n", workdir, "--search", "--trajectories", 4)
    text, _, chosen = shown.out.removesuffix("\n").rpartition("\n")
    assert text
    assert "attempts]" in chosen or "no attempt has an answer" in chosen
    saved, told = load_saved(workdir), []
    settings = ChatSettings(max_tokens=9, trajectories=4)
    talker = Talker(saved.model, saved.params, saved.tokenizer, settings, search_settings(saved, settings))
    found = talker.search(saved.tokenizer.encode("aab\n"), lambda: None, told.append)
    assert visible(found.text) == text
    assert 1 <= found.votes <= found.attempts <= 4
    assert "nodes" in told[-1]
    assert "attempts" in told[-1]


def test_chat_makes_of_a_best_first_search_one_that_it_can_run(workdir):
    saved = load_saved(workdir)
    search = dataclasses.replace(
        saved.settings.search, expansion="lazy", siblings="distinct", frontier_entropy="excess", num_trajectories=8,
        trajectories_if_solved=2,
    )  # fmt: skip
    run = dataclasses.replace(saved.settings, search=search)
    found = search_settings(saved._replace(settings=run), ChatSettings(trajectories=1))
    assert (found.num_trajectories, found.siblings, found.trajectories_if_solved) == (1, "independent", 0)


def test_an_answer_that_is_stopped_keeps_what_was_shown(workdir, monkeypatch, capsys):
    saved, calls = load_saved(workdir), []

    def stop_at_the_second_piece():
        calls.append(0)
        if len(calls) == 2:
            raise Interrupted("SIGINT")

    settings = ChatSettings(max_tokens=9, temperature=5.0, top_p=1.0)
    talker = Talker(saved.model, saved.params, saved.tokenizer, settings, search_settings(saved, settings))
    monkeypatch.setattr("experiments.chat.StopRequest.check", lambda self: stop_at_the_second_piece())
    response = chat._streamed(talker, saved.tokenizer.encode("aab\n"))
    out = capsys.readouterr().out
    assert out == f"{visible(response)} [stopped]\n" or len(calls) == 1


def test_a_long_conversation_loses_its_oldest_turns(exported):
    class Template(HFTokenizer):
        def chat_text(self, messages):
            return "".join(message["content"] + "\n" for message in messages)

    conversation = Conversation(Template(exported), ChatSettings(system="b"))
    for _ in range(3):
        conversation.add("a", "ab")
    assert len(conversation.prompt("aa", 50)) == len("b\n" + "a\nab\n" * 3 + "aa\n")
    assert len(conversation.prompt("aa", 16)) == len("b\n" + "a\nab\n" * 2 + "aa\n")
    assert len(conversation.prompt("aa", 5)) == len("b\naa\n")
    with pytest.raises(ValueError, match="the prompt has 5 tokens, there is room for 4"):
        conversation.prompt("aa", 4)
    conversation.add("a", "ab")
    conversation.reset()
    assert len(conversation.prompt("aa", 50)) == 5


def test_characters_without_a_token_are_named(exported):
    conversation = Conversation(HFTokenizer(exported), ChatSettings())
    assert conversation.has_template
    with pytest.raises(ValueError, match="no token for 'xé'; leave"):
        conversation.prompt("axbéx", 50)
    assert len(conversation.prompt("ab", 50)) == len("ab\n")


def test_what_could_move_the_cursor_is_shown_as_escapes():
    assert visible("a\x1b[2Jb\r\n\tc\x00\u202e\x9bd") == "a\\x1b[2Jb\\r\n\tc\\x00\\u202e\\x9bd"
    assert visible("größer ∑ 数") == "größer ∑ 数"


def test_votes_go_by_what_answers_say():
    assert most_frequent(["1", "0.5", None, r"\frac{1}{2}", "1", "1/2"]) == [1, 3, 5]
    assert most_frequent([None, None]) == []
