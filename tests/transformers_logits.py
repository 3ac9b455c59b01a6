"""Opens a directory with transformers and writes its logits; needs torch, and nothing of this project.

    python tests/transformers_logits.py HF_DIR CASES.npz LOGITS.npz

CASES holds tokens_I and mask_I [R, T] for I = 0, 1, ...; LOGITS gets logits_I [R, T, V] float32. Fails where a tensor
is missing or left over.
"""

import sys

import numpy as np
import torch
from transformers import AutoModelForCausalLM


def main(directory: str, cases_file: str, logits_file: str) -> None:
    model, report = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager", output_loading_info=True
    )
    problems = {name: sorted(found) for name, found in report.items() if found}
    if problems:
        raise SystemExit(f"transformers finds that {directory} does not fit {type(model).__name__}: {problems}")
    cases, logits = np.load(cases_file), {}
    with torch.no_grad():
        for index in range(len(cases.files) // 2):
            tokens, mask = (torch.from_numpy(cases[f"{name}_{index}"]).long() for name in ("tokens", "mask"))
            logits[f"logits_{index}"] = model(input_ids=tokens, attention_mask=mask).logits.numpy()
    np.savez(logits_file, **logits)
    print(f"{type(model).__name__} opened by transformers")


if __name__ == "__main__":
    main(*sys.argv[1:])
