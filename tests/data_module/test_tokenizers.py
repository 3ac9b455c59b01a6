import json
import logging
import subprocess
import sys

import pytest

from deepsearch_jax.data.tokenizers import CharTokenizer, HFTokenizer

HELLO = [{"role": "user", "content": "hi"}]


def edit_json(path, **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({k: v for k, v in content.items() if v is not None}))


def test_characters_by_hand():
    tokenizer = CharTokenizer("01+=")
    assert (tokenizer.vocab_size, tokenizer.eos_ids, tokenizer.pad_id) == (6, (1,), 0)
    assert tokenizer.encode("1+0=1$") == [3, 4, 2, 5, 3, 1]
    assert tokenizer.decode([3, 4, 2, 5, 3, 1, 0, 0]) == "1+0=1"
    assert tokenizer.decode([3, 1, 0], skip_special=False) == "1$_"
    assert tokenizer.decode([3, 6, -1, 2]) == "1\ufffd\ufffd0"
    assert tokenizer.encode_prompt("1+") == tokenizer.encode_prompt([{"role": "user", "content": "1+"}]) == [3, 4]
    assert tokenizer.decode([]) == ""


def test_unknown_characters_and_double_alphabets_are_refused():
    with pytest.raises(ValueError, match=r"character '2' of '1\+2' is not in the alphabet '01\+='"):
        CharTokenizer("01+=").encode("1+2")
    with pytest.raises(ValueError, match="'_' of '_' is not"):  # padding is no text
        CharTokenizer("01+=").encode("_")
    with pytest.raises(ValueError, match="character '1' occurs twice"):
        CharTokenizer("101")
    with pytest.raises(ValueError, match="must be single characters"):
        CharTokenizer("01", eos="<end>")


def test_a_directory_round_trip_with_special_and_unknown_ids(byte_directory):
    tokenizer = HFTokenizer(byte_directory)
    assert (tokenizer.vocab_size, tokenizer.pad_id) == (259, 258)
    text = "naïve ² 数 x"
    ids = tokenizer.encode(text)
    assert len(ids) == len(text.encode())
    assert tokenizer.decode([*ids, 257, 258]) == text
    assert tokenizer.decode([*ids, 257], skip_special=False) == text + "<|end|>"
    assert tokenizer.decode([ids[0], 259, 10**12, -3, ids[0]]) == "n\ufffd\ufffd\ufffdn"
    assert tokenizer.decode([]) == ""


def test_the_chat_template_writes_the_prompt(byte_directory):
    tokenizer = HFTokenizer(byte_directory)
    assert tokenizer.chat_text(HELLO) == "<|start|>user\nhi<|end|>\n<|start|>assistant\n"
    ids = tokenizer.encode_prompt(HELLO)
    assert ids == tokenizer.encode("<|start|>user\nhi<|end|>\n<|start|>assistant\n")
    assert ids.count(256) == 2  # special tokens are one id each
    with pytest.raises(ValueError, match=r"refuses messages of roles \['tool'\]: unknown role tool"):
        tokenizer.encode_prompt([{"role": "tool", "content": "hi"}])


def test_without_a_chat_template_only_plain_prompts_work(byte_directory):
    edit_json(byte_directory / "tokenizer_config.json", chat_template=None)
    tokenizer = HFTokenizer(byte_directory)
    assert not tokenizer.has_chat_template
    assert tokenizer.encode_prompt("hi") == tokenizer.encode("hi")
    with pytest.raises(ValueError, match=r"has no chat template; .* prompt\.chat=False"):
        tokenizer.encode_prompt(HELLO)


def test_a_start_token_is_added_once(byte_directory):
    """As Llama and Gemma do: plain prompts begin with it, text does not, a template writes it itself."""
    from tokenizers import Tokenizer, processors

    tokenizer = Tokenizer.from_file(str(byte_directory / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|start|> $A", special_tokens=[("<|start|>", 256)], pair="<|start|> $A $B"
    )
    tokenizer.save(str(byte_directory / "tokenizer.json"))
    ours = HFTokenizer(byte_directory)
    hi = ours.encode("hi")
    assert len(hi) == 2
    assert ours.encode_prompt("hi") == [256, *hi]
    assert ours.encode_prompt(HELLO)[:2] != [256, 256]


@pytest.mark.parametrize(
    ("generation", "config", "tokenizer_eos", "expected"),
    [
        ([258, 256], 257, "<|end|>", (258, 256, 257)),
        (256, 256, "<|end|>", (256, 257)),
        (None, [5, 6], None, (5, 6)),
        (None, None, "<|end|>", (257,)),
    ],
)
def test_every_end_of_sequence_id_counts(byte_directory, generation, config, tokenizer_eos, expected):
    edit_json(byte_directory / "generation_config.json", eos_token_id=generation)
    edit_json(byte_directory / "config.json", eos_token_id=config)
    edit_json(byte_directory / "tokenizer_config.json", eos_token=tokenizer_eos)
    assert HFTokenizer(byte_directory).eos_ids == expected


def test_special_tokens_made_up_by_transformers_do_not_count(byte_directory):
    """For qwen2 it adds "<|endoftext|>" as id 259, for the model an id like any other."""
    edit_json(byte_directory / "config.json", model_type="qwen2")
    edit_json(byte_directory / "tokenizer_config.json", eos_token=None, pad_token=None, tokenizer_class=None)
    tokenizer = HFTokenizer(byte_directory)
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((258, 256, 257), 258)


def test_nested_text_config_and_missing_files(byte_directory):
    (byte_directory / "generation_config.json").unlink()
    edit_json(byte_directory / "config.json", eos_token_id=None, text_config={"eos_token_id": [7]})
    edit_json(byte_directory / "tokenizer_config.json", eos_token=None, pad_token=None)
    tokenizer = HFTokenizer(byte_directory)
    assert (tokenizer.eos_ids, tokenizer.pad_id) == ((7,), 7)
    (byte_directory / "config.json").unlink()
    with pytest.raises(ValueError, match=r'no end-of-sequence id .* add "eos_token_id" to generation_config\.json'):
        HFTokenizer(byte_directory)


def test_missing_and_half_downloaded_directories_are_refused(byte_directory):
    with pytest.raises(ValueError, match="does not exist"):
        HFTokenizer(byte_directory / "absent")
    content = (byte_directory / "tokenizer.json").read_text()
    (byte_directory / "tokenizer.json").write_text(content[: len(content) // 2])
    with pytest.raises(ValueError, match=r"tokenizer\.json is damaged or only half downloaded"):
        HFTokenizer(byte_directory)
    (byte_directory / "tokenizer.json").write_text("[]")
    with pytest.raises(ValueError, match="must hold a JSON object, got list"):
        HFTokenizer(byte_directory)
    (byte_directory / "tokenizer.json").write_text("{}")
    with pytest.raises(ValueError, match="cannot be opened"):
        HFTokenizer(byte_directory)
    (byte_directory / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match=r"has no tokenizer \(tokenizer\.json"):
        HFTokenizer(byte_directory)


def test_opening_is_silent_and_leaves_logging_as_it_was(byte_directory):
    program = """
import logging, sys
from deepsearch_jax.data.tokenizers import HFTokenizer
assert "transformers" not in sys.modules
tokenizer = HFTokenizer(sys.argv[1])
tokenizer.encode("x" * 5000)
tokenizer.encode_prompt([{"role": "user", "content": "hi"}])
assert logging.root.manager.disable == 0
"""
    command = [sys.executable, "-W", "error", "-c", program, str(byte_directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert logging.root.manager.disable == 0


@pytest.mark.real_model
def test_the_real_tokenizer_gives_the_recorded_ids(model_dir, shared_dir):
    golden = json.loads((shared_dir / "models" / "golden_qwen05b.json").read_text())
    tokenizer = HFTokenizer(model_dir)
    assert tokenizer.eos_ids == (151645, 151643)
    assert tokenizer.pad_id == golden["pad_id"]
    assert tokenizer.vocab_size <= golden["vocab_size"]
    for case in golden["tokenizer"]:
        assert tokenizer.encode(case["text"]) == case["ids"]
        assert tokenizer.decode(case["ids"], skip_special=False) == case["text"]
    for case in golden["prompts"]:
        if "<|im_start|>" not in case["text"]:
            assert tokenizer.encode_prompt(case["text"]) == case["input_ids"]
    chat = golden["chat_template"]
    assert tokenizer.chat_text(chat["messages"]) == chat["text"]
    assert tokenizer.encode_prompt(chat["messages"]) == chat["ids"]
    assert tokenizer.decode(golden["greedy_continuation_of_prompt_3"]) == golden["greedy_text"]
    assert tokenizer.decode([9707, golden["vocab_size"] - 1, 1879, 151645]) == "Hello\ufffd world"


def test_the_bytes_of_tokens_join_to_the_text(byte_directory):
    tokenizer = HFTokenizer(byte_directory)
    token_bytes = tokenizer.token_bytes()
    assert len(token_bytes) == tokenizer.vocab_size
    text = "naïve ² 数\n\tx"
    assert b"".join(token_bytes[i] for i in tokenizer.encode(text)) == text.encode()
    assert token_bytes[256:] == [b"", b"", b""]  # the special tokens of the directory
    assert CharTokenizer("0é").token_bytes() == [b"", b"", b"0", "é".encode()]


def test_the_bytes_of_sentencepiece_tokens(tmp_path):
    from tokenizers import AddedToken, Tokenizer, decoders, models

    vocabulary = {"<eos>": 0, "\u2581the": 1, "cat": 2, "<0xC3>": 3, "<0xA9>": 4, "\u2581\u2581": 5}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[], byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()])
    raw.add_special_tokens([AddedToken("<eos>", special=True)])
    raw.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "<eos>"})
    )
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    assert HFTokenizer(tmp_path).token_bytes() == [b"", b" the", b"cat", b"\xc3", b"\xa9", b"  "]


def test_tokenizers_of_unknown_kind_have_no_bytes(tmp_path):
    from tokenizers import Tokenizer, models

    Tokenizer(models.WordLevel({"a": 0, "[UNK]": 1}, unk_token="[UNK]")).save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 0}')
    with pytest.raises(ValueError, match=r"stop strings need a byte-level or SentencePiece tokenizer"):
        HFTokenizer(tmp_path).token_bytes()
