"""Compares model directories with numbers recorded from transformers.

    python -m tests.model_parity                         # the recorded models of tests/data, one of each family
    python -m tests.model_parity HF_DIR GOLDEN.json
    python -m tests.model_parity --transformers PYTHON   # opens the exported ones too; PYTHON has torch

Knows two formats of golden files: small models with full logits (`cases`: logits, loss, gradient norms, greedy tokens)
and real models with excerpts (`prompts`: top logits, log-probs of the next tokens, a padded batch, greedy tokens,
tokenizer and chat-template cases). Everything runs in float32; the greedy tokens come from the tree decode engine.
Small models are also exported and read again, which must give every tensor bit for bit.
Prints the largest differences, ends with a line `model parity: PASS` or `model parity: FAIL` and exits with 0 or 1.
"""

import argparse
import base64
import functools
import json
import pathlib
import subprocess
import tempfile
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from safetensors.numpy import load_file

from deepsearch_jax import policy
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, decode_children, init_pages, prefill

HERE = pathlib.Path(__file__).parent
SMALL_LIMIT, REAL_LIMIT = 1e-4, 1e-3  # on float32 log-probs; recorded numbers are off float64 by 1e-5 and 2e-4
GRADIENT_LIMIT = 1e-3  # relative, on norms
SEGMENT = 8  # greedy tokens per tree node, so that pages, prefix and merge are on the way


class Report:
    """Prints one line per comparison and remembers whether all were good."""

    def __init__(self) -> None:
        self.passed = True

    def difference(self, what: str, got: Any, want: Any, limit: float, *, relative: bool = False) -> None:
        got, want = np.asarray(got, np.float64), np.asarray(want, np.float64)
        gap = np.abs(got - want) / (np.abs(want) if relative else 1)
        largest = float(gap.max()) if gap.size else 0.0
        self.verdict(
            f"{what}: max {'relative ' * relative}difference {largest:.2e} (limit {limit:.0e})", largest <= limit
        )

    def equal(self, what: str, got: Any, want: Any) -> None:
        self.verdict(what if got == want else f"{what}: got {got!r}, recorded {want!r}", got == want)

    def verdict(self, line: str, good: bool) -> None:
        self.passed &= bool(good)
        print(f"  {'ok  ' if good else 'FAIL'} {line}", flush=True)


def decode_floats(case: dict[str, Any]) -> np.ndarray:
    """Full logits of a case of the small format, [R, T, V] float32."""
    return np.frombuffer(base64.b64decode(case["logits_f32_le_base64"]), "<f4").reshape(case["logits_shape"])


@functools.partial(jax.jit, static_argnames="config")
def forward(config: policy.ModelConfig, params: policy.Params, tokens: jax.Array, mask: jax.Array):
    """Logits [R, T, V] and log-probs of the tokens [R, T]."""
    hidden = policy.hidden_states(config, params, tokens, mask)
    log_probs, _ = policy.token_log_probs(config, params, tokens, mask, chunk_size=64)
    return policy.logits(params, hidden), log_probs


def greedy_tokens(config: policy.ModelConfig, params: policy.Params, prompt: list[int], count: int) -> list[int]:
    """The most likely continuation, decoded as a chain of tree nodes; EOS does not stop it."""
    length = min(SEGMENT, count)
    depth = -(-count // length)
    settings = DecodeSettings(
        num_samples=1, segment_length=length, max_prompt_length=len(prompt), max_depth=depth, temperature=0.0
    )
    pages = init_pages(config, 1, depth, length, len(prompt))
    encode = jax.jit(prefill, static_argnames="config")
    decode = jax.jit(decode_children, static_argnames=("config", "settings"))
    lengths = jnp.array([len(prompt)])
    pages = encode(config, params, pages, jnp.array([prompt]), lengths, jnp.array([True]))
    tokens: list[int] = []
    for level in range(depth):
        request = DecodeRequest(
            prompt_lengths=lengths,
            path_pages=jnp.array([[page if page < level else -1 for page in range(depth)]]),
            depth=jnp.array([level]),
            last_token=jnp.array([(prompt + tokens)[-1]]),
            child_pages=jnp.array([[level]]),
            row_keys=jax.random.split(jax.random.key(level), (1, 1)),
            active=jnp.array([True]),
        )
        pages, segments, *_ = decode(config, params, pages, request, settings)
        tokens += segments.tokens[0, 0].tolist()
    return tokens[:count]


def greedy_over_rows(config: policy.ModelConfig, params: policy.Params, prompt: list[int], count: int) -> list[int]:
    """The same without the engine: every token by a pass over the whole row."""
    row = jnp.array([prompt + [0] * count])
    mask = jnp.ones_like(row)
    for length in range(len(prompt), len(prompt) + count):
        row = row.at[0, length].set(forward(config, params, row, mask)[0][0, length - 1].argmax())
    return row[0, len(prompt) :].tolist()


def check_export(
    report: Report, directory: pathlib.Path, golden: dict[str, Any], model: Any, torch_python: str | None
) -> None:
    """Exports the model in several files, reads it again and, where there is torch, opens it with transformers."""
    config, params = model
    with tempfile.TemporaryDirectory() as folder:
        exported = pathlib.Path(folder) / "model"
        policy.save_pretrained(exported, config, params, max_shard_bytes=100_000)
        files = [
            {k: v for f in d.glob("*.safetensors") for k, v in load_file(f).items()} for d in (directory, exported)
        ]
        report.equal("exported tensors have the names that were read", *(sorted(tensors) for tensors in files))
        same = [np.array_equal(value, files[1].get(name)) for name, value in files[0].items()]
        report.verdict(f"{sum(same)} of {len(same)} exported tensors equal bit for bit those that were read", all(same))
        again_config, again = policy.load_pretrained(exported)
        report.equal("the exported config reads back", again_config, config)
        equal = jax.tree.map(lambda a, b: bool((a == b).all()), again, params)
        report.verdict("the exported parameters read back bit for bit", jax.tree.all(equal))
        if torch_python is None:
            return
        cases, logits = pathlib.Path(folder) / "cases.npz", pathlib.Path(folder) / "logits.npz"
        pairs = [
            {f"tokens_{i}": c["input_ids"], f"mask_{i}": c["attention_mask"]} for i, c in enumerate(golden["cases"])
        ]
        np.savez(cases, **{name: np.array(value) for pair in pairs for name, value in pair.items()})
        run = subprocess.run(
            [torch_python, str(HERE / "transformers_logits.py"), str(exported), str(cases), str(logits)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        report.verdict(run.stdout.strip() or f"transformers: {run.stderr[-800:]}", run.returncode == 0)
        if run.returncode == 0:
            theirs = np.load(logits)
            for index, case in enumerate(golden["cases"]):
                real = np.array(case["attention_mask"]) == 1
                ours, _ = forward(config, again, jnp.array(case["input_ids"]), jnp.array(case["attention_mask"]))
                got = theirs[f"logits_{index}"][real]
                report.difference(f"case {index} logits of transformers", got, np.asarray(ours)[real], SMALL_LIMIT)


def check_small(
    report: Report, directory: pathlib.Path, golden: dict[str, Any], torch_python: str | None = None
) -> None:
    """Full logits, loss, gradient norms, greedy tokens, export."""
    config, params = policy.load_pretrained(directory)
    newer = directory / "config_transformers5.json"
    if newer.exists():
        report.equal(
            "both forms of config.json agree", policy.ModelConfig.from_hf(json.loads(newer.read_text())), config
        )
    for index, case in enumerate(golden["cases"]):
        tokens, mask, want = np.array(case["input_ids"]), np.array(case["attention_mask"]), decode_floats(case)
        logits, taken = forward(config, params, jnp.array(tokens), jnp.array(mask))
        table = np.asarray(jax.nn.log_softmax(want, axis=-1))
        real = mask == 1
        report.difference(f"case {index} logits", np.asarray(logits)[real], want[real], SMALL_LIMIT)
        got = np.asarray(jax.nn.log_softmax(logits, axis=-1))
        report.difference(f"case {index} log-probs of all tokens", got[real], table[real], SMALL_LIMIT)
        predicted = real[:, 1:] & real[:, :-1]
        want_taken = np.take_along_axis(table[:, :-1], tokens[:, 1:, None], axis=-1)[..., 0]
        report.difference(
            f"case {index} log-probs of next tokens",
            np.asarray(taken)[:, 1:][predicted],
            want_taken[predicted],
            SMALL_LIMIT,
        )
    tokens = jnp.array(golden["cases"][0]["input_ids"])

    def loss(params: policy.Params) -> jax.Array:
        log_probs, _ = policy.token_log_probs(config, params, tokens, jnp.ones_like(tokens), chunk_size=16)
        return -log_probs.sum() / (tokens.shape[0] * (tokens.shape[1] - 1))

    value, grads = jax.jit(jax.value_and_grad(loss))(params)
    report.difference("loss of case 0", value, golden["loss_of_case_0"], SMALL_LIMIT)
    norms = {name: float(np.linalg.norm(array())) for name, _, array in policy.hf_tensors(config, grads)}
    want_norms = golden["grad_norms_of_case_0"]
    report.equal("gradients have the recorded tensor names", sorted(norms), sorted(want_norms))
    pairs = [(norms[name], norm) for name, norm in want_norms.items() if name in norms]
    report.difference("gradient norms", *zip(*pairs), GRADIENT_LIMIT, relative=True)
    greedy = golden["greedy"]
    for name, decode in (("whole rows", greedy_over_rows), ("tree decode", greedy_tokens)):
        got_ids = decode(config, params, greedy["prompt"], len(greedy["new_ids"]))
        report.equal(f"{len(got_ids)} greedy tokens by {name}", got_ids, greedy["new_ids"])
    check_export(report, directory, golden, (config, params), torch_python)


def check_rows(report: Report, what: str, model: Any, rows: list[dict[str, Any]], tokens: Any, mask: Any) -> None:
    """Excerpts of each row's logits: the last position's top ten, next-token log-probs, argmax of every position."""
    logits, taken = (np.asarray(x) for x in forward(*model, jnp.array(tokens), jnp.array(mask)))
    for index, row in enumerate(rows):
        last, count = logits[index, row["n"] - 1], row["n"]
        name = f"{what} {index} ({count} tokens)"
        report.difference(f"{name} top logits", last[row["last_top10_ids"]], row["last_top10_logits"], REAL_LIMIT)
        normaliser = float(jax.nn.logsumexp(last))
        report.difference(f"{name} logsumexp", normaliser, row["last_logsumexp"], REAL_LIMIT)
        report.difference(
            f"{name} last log-probs",
            last[row["last_top10_ids"]] - normaliser,
            np.array(row["last_top10_logits"]) - row["last_logsumexp"],
            REAL_LIMIT,
        )
        report.difference(
            f"{name} log-probs of next tokens", taken[index, 1:count], row["next_token_logprobs"], REAL_LIMIT
        )
        report.equal(f"{name} argmax of each position", logits[index, :count].argmax(-1).tolist(), row["argmax_ids"])


def check_real(report: Report, directory: pathlib.Path, golden: dict[str, Any]) -> None:
    """Excerpts of logits, a padded batch, greedy tokens, tokenizer and chat template."""
    model = policy.load_pretrained(directory)
    for index, row in enumerate(golden["prompts"]):
        ids = [row["input_ids"]]
        check_rows(report, f"prompt {index}, row", model, [row], ids, np.ones_like(ids))
    batch = golden.get("right_padded_batch")
    if batch:
        check_rows(report, "padded row", model, batch["rows"], batch["input_ids"], batch["attention_mask"])
    for name, ids in golden.items():
        if name.startswith("greedy_continuation_of_prompt_"):
            prompt = golden["prompts"][int(name.rsplit("_", 1)[1])]["input_ids"]
            report.equal(f"{len(ids)} greedy tokens", greedy_tokens(*model, prompt, len(ids)), ids)
    if (directory / "tokenizer.json").exists():
        check_tokenizer(report, directory, golden)


def check_tokenizer(report: Report, directory: pathlib.Path, golden: dict[str, Any]) -> None:
    """Recorded token ids and the chat template's text."""
    from transformers import AutoTokenizer  # slow to import, and only some directories have a tokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory)
    for case in golden.get("tokenizer", []):
        report.equal(f"tokens of {case['text']!r}", tokenizer(case["text"])["input_ids"], case["ids"])
    chat = golden.get("chat_template")
    if chat:
        text = tokenizer.apply_chat_template(chat["messages"], tokenize=False, add_generation_prompt=True)
        report.equal("text of the chat template", text, chat["text"])
        report.equal("tokens of the chat template", tokenizer(text)["input_ids"], chat["ids"])


def check(report: Report, directory: pathlib.Path, golden_file: pathlib.Path, torch_python: str | None) -> None:
    golden = json.loads(golden_file.read_text("utf-8"))
    print(f"{directory} against {golden_file}")
    try:
        if "cases" in golden:
            check_small(report, directory, golden, torch_python)
        elif "prompts" in golden:
            check_real(report, directory, golden)
        else:
            raise ValueError(f"{golden_file} has neither 'cases' nor 'prompts'; no known golden format")
    except ValueError as error:
        report.verdict(str(error), False)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.model_parity", description=__doc__.splitlines()[0])
    parser.add_argument("hf_dir", type=pathlib.Path, nargs="?")
    parser.add_argument("golden", type=pathlib.Path, nargs="?", help="default: golden.json of the directory")
    parser.add_argument("--transformers", metavar="PYTHON", help="interpreter with torch: opens exported small models")
    options = parser.parse_args(arguments)
    directories = [options.hf_dir] if options.hf_dir else sorted((HERE / "data").glob("tiny_*"))
    report = Report()
    for directory in directories:
        check(report, directory, options.golden or directory / "golden.json", options.transformers)
    print(f"model parity: {'PASS' if report.passed else 'FAIL'}")
    return 0 if report.passed else 1


if __name__ == "__main__":
    raise SystemExit(main())
