"""`generate` of transformers on torch, float32. `python transformers_generate.py MODEL_DIR`.

Set in its favour: scaled-dot-product attention, as many threads as cores allowed, no padding, no sorting sampler
(top-k 0, top-p 1), no end token to test for, no scores returned.
"""

import os
import sys

import torch
import transformers
from protocol import Clock, Generation, serve
from transformers import AutoModelForCausalLM, GenerationConfig, StoppingCriteria, StoppingCriteriaList


class NoteFirst(StoppingCriteria):
    """Never stops; notes when the first token of a generation was there."""

    def __init__(self) -> None:
        self.moment: Clock | None = None

    def __call__(self, input_ids, scores, **kwargs):
        self.moment = self.moment or Clock.now()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


@torch.inference_mode()
def main() -> None:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, attn_implementation="sdpa").eval()
    model.generation_config = GenerationConfig(pad_token_id=0)  # the model's own one cuts to top-k and ends at EOS

    def generate(prompts: list[list[int]], new_tokens: int, seed: int) -> Generation:
        torch.manual_seed(seed)
        ids = torch.tensor(prompts)
        note = NoteFirst()
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=new_tokens,
            pad_token_id=0,
            use_cache=True,
        )
        start = Clock.now()
        output = model.generate(
            ids, attention_mask=torch.ones_like(ids), generation_config=settings,
            stopping_criteria=StoppingCriteriaList([note]),
        )  # fmt: skip
        return Generation(start, note.moment or start, Clock.now(), output[:, ids.shape[1] :].numel())

    serve({"transformers": transformers.__version__, "torch": torch.__version__}, generate)


if __name__ == "__main__":
    main()
