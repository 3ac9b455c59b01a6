"""Samples responses with transformers; needs torch, and nothing of this project.

    python tests/transformers_samples.py REQUEST.json SAMPLES.jsonl

REQUEST holds directory, prompts (lists of token ids), num_samples, max_length, temperature, top_p, eos_ids and seed.
SAMPLES gets a row {"index", "samples"} a prompt; rows that are there are not sampled again.
"""

import json
import pathlib
import sys
import time

import torch
from transformers import AutoModelForCausalLM

_AT_ONCE = 8  # prompts of a batch


def main(request_file: str, samples_file: str) -> None:
    request, path = json.loads(pathlib.Path(request_file).read_text()), pathlib.Path(samples_file)
    model = AutoModelForCausalLM.from_pretrained(request["directory"], dtype=torch.float32).eval()
    lines = path.read_text().splitlines() if path.exists() else []
    done = {json.loads(line)["index"] for line in lines}
    left = [index for index in range(len(request["prompts"])) if index not in done]
    left.sort(key=lambda index: len(request["prompts"][index]))  # prompts of a batch are about as long
    ends, begin = request["eos_ids"], time.monotonic()
    for start in range(0, len(left), _AT_ONCE):
        some = left[start : start + _AT_ONCE]
        prompts = [request["prompts"][index] for index in some]
        width = max(map(len, prompts))
        tokens = torch.tensor([[ends[0]] * (width - len(p)) + p for p in prompts])  # padded on the left
        mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
        torch.manual_seed(request["seed"] + some[0])
        with torch.no_grad():
            found = model.generate(
                input_ids=tokens, attention_mask=mask, do_sample=True, temperature=request["temperature"],
                top_p=request["top_p"], top_k=0, repetition_penalty=1.0, max_new_tokens=request["max_length"],
                num_return_sequences=request["num_samples"], eos_token_id=ends, pad_token_id=ends[0],
            )  # fmt: skip
        with path.open("a") as file:
            for row, index in enumerate(some):
                rows = found[row * request["num_samples"] : (row + 1) * request["num_samples"], width:].tolist()
                file.write(json.dumps({"index": index, "samples": [cut(sample, ends) for sample in rows]}) + "\n")
        print(f"transformers: {start + len(some)}/{len(left)}, {time.monotonic() - begin:.0f}s", flush=True)


def cut(sample: list[int], ends: list[int]) -> list[int]:
    """Up to the end of the sequence, which is kept."""
    for position, token in enumerate(sample):
        if token in ends:
            return sample[: position + 1]
    return sample


if __name__ == "__main__":
    main(*sys.argv[1:])
