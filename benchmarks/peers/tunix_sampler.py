"""The vanilla sampler of tunix, float32, as its own documentation uses it. `python tunix_sampler.py MODEL_DIR`.

Set in its favour: prompts are not padded (its default pads to a power of two), the key/value cache is exactly as long
as prompt and answer together, no log-probs and no logits are returned, top-p 1 takes the path without sorting.
"""

import importlib.metadata
import sys

import jax
import jax.numpy as jnp
from protocol import Clock, Generation, serve
from tunix.generate.sampler import CacheConfig, Sampler
from tunix.models.qwen2.model import ModelConfig
from tunix.models.qwen2.params import create_model_from_safe_tensors


class IdTokenizer:
    """Reads a prompt of token ids written as text; knows no end token that the model could draw."""

    def encode(self, text: str) -> list[int]:
        return [int(word) for word in text.split()]

    def decode(self, ids: list[int]) -> str:
        return " ".join(str(number) for number in ids)

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return -1

    def pad_id(self) -> int:
        return 151643


def main() -> None:
    config = ModelConfig.qwen2p5_coder_0p5b()
    model = create_model_from_safe_tensors(sys.argv[1], config, dtype=jnp.float32)
    samplers: dict[int, Sampler] = {}
    moments: list[Clock] = []

    def sampler_for(room: int) -> Sampler:
        if room not in samplers:
            cache = CacheConfig(room, config.num_layers, config.num_kv_heads, config.head_dim)
            samplers[room] = Sampler(model, IdTokenizer(), cache)
            encode = samplers[room]._compiled_prefill_fn

            def timed(*args, **kwargs):
                state = jax.block_until_ready(encode(*args, **kwargs))
                moments.append(Clock.now())
                return state

            samplers[room]._compiled_prefill_fn = timed
        return samplers[room]

    def generate(prompts: list[list[int]], new_tokens: int, seed: int) -> Generation:
        length = len(prompts[0])
        sampler = sampler_for(length + new_tokens)
        texts = [" ".join(map(str, prompt)) for prompt in prompts]
        start = Clock.now()
        output = sampler(
            texts, new_tokens, max_prompt_length=length, temperature=1.0, top_p=1.0, seed=seed, eos_tokens=[-1]
        )
        return Generation(start, moments[-1], Clock.now(), sum(len(tokens) for tokens in output.tokens))

    serve({"tunix": importlib.metadata.version("google-tunix"), "jax": jax.__version__}, generate)


if __name__ == "__main__":
    main()
