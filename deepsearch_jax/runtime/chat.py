"""Responses of one policy to one prompt at a time: sampled in small pieces that can be shown at once, or searched."""

import dataclasses
import functools
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from deepsearch_jax.data.problems import Problem
from deepsearch_jax.data.tokenizers import HFTokenizer, Message, Tokenizer
from deepsearch_jax.decode import DecodeRequest, DecodeSettings, decode_children, init_pages, prefill
from deepsearch_jax.policy import ModelConfig
from deepsearch_jax.runtime.learning import decoding_params
from deepsearch_jax.runtime.rollout_settings import RolloutSettings
from deepsearch_jax.runtime.rollouts import Sampler, bucket
from deepsearch_jax.runtime.saved import SavedPolicy
from deepsearch_jax.runtime.settings import check_seed
from deepsearch_jax.runtime.verdicts import Verdict
from deepsearch_jax.tree import SearchSettings
from deepsearch_jax.verify import final_answer, same_answer

PIECE = 8  # tokens of a compiled call, and of a page; text appears in such pieces
_PROMPT_MULTIPLE = 64
_SEGMENT = 64  # tokens of a node, where no run says otherwise
_SHOWN_CONTROLS = "\n\t"


@dataclasses.dataclass(frozen=True)
class ChatSettings:
    """How a policy answers.

    Attributes:
      temperature: of the sampling distribution; 0 takes the likeliest token.
      top_p: probability mass kept; 1 keeps all.
      max_tokens: of a response; of a search's up to one more a segment, so that all segments are equally long.
      max_prompt: tokens of a conversation; older turns go.
      seed: of the samples.
      trajectories: attempts of a search.
      system: system message; "" sends none.
    """

    temperature: float = 0.6
    top_p: float = 0.95
    max_tokens: int = 1024
    max_prompt: int = 4096
    seed: int = 0
    trajectories: int = 16
    system: str = ""

    def __post_init__(self) -> None:
        for name in ("max_tokens", "max_prompt", "trajectories"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} must be at least 1")
        check_seed(self.seed)
        DecodeSettings(temperature=self.temperature, top_p=self.top_p)  # checks both
        _check_text(self.system, "the system message")

    def check_search(self) -> None:
        """Raises: ValueError if the attempts of a search would all be the same."""
        if not self.temperature:
            raise ValueError(
                "temperature=0 takes the likeliest token, so that all attempts of a search would be the same one; "
                "give a temperature above 0, or do not search"
            )


class Found(NamedTuple):
    """What a search came to.

    Attributes:
      text: the response chosen: of those with the most frequent answer the one the policy was surest of.
      answer: its answer; None if no attempt had one.
      votes: attempts with that answer, of `attempts`.
    """

    text: str
    answer: str | None
    votes: int
    attempts: int


class Conversation:
    """Turns so far, and the prompt they make."""

    def __init__(self, tokenizer: Tokenizer, settings: ChatSettings, line_end: str = ""):
        """`line_end`: what follows a question where characters are read, see SavedPolicy."""
        self._tokenizer, self._settings, self._line_end = tokenizer, settings, line_end
        self.has_template = isinstance(tokenizer, HFTokenizer) and tokenizer.has_chat_template
        self._turns: list[Message] = []

    def prompt(self, text: str, limit: int) -> list[int]:
        """Token ids of the conversation with this question; the oldest turns go where it is longer than `limit`.

        Raises: ValueError if the question alone is longer, is no text, or cannot be written in tokens.
        """
        _check_text(text, "the question")
        if not self.has_template:
            before = f"{self._settings.system}\n\n" if self._settings.system else ""
            return self._checked(self._tokenizer.encode_prompt(before + text + self._line_end), limit)
        # Byte-level tables of few characters, as runs of character tasks are exported with, lose the others.
        lost = [c for c in dict.fromkeys(text) if not c.isspace() and not self._tokenizer.encode(c)]
        if lost:
            raise ValueError(f"the model has no token for {''.join(lost)!r}; leave it out of the question")
        system = [{"role": "system", "content": self._settings.system}] if self._settings.system else []
        while True:
            ids = self._tokenizer.encode_prompt([*system, *self._turns, {"role": "user", "content": text}])
            if len(ids) <= limit or not self._turns:
                return self._checked(ids, limit)
            del self._turns[:2]

    def add(self, question: str, response: str) -> None:
        """Remembers a turn, where the model can be told of it."""
        if self.has_template:
            self._turns += [{"role": "user", "content": question}, {"role": "assistant", "content": response}]

    def reset(self) -> None:
        self._turns = []

    def _checked(self, ids: list[int], limit: int) -> list[int]:
        if not ids:
            raise ValueError("the prompt is empty")
        if len(ids) > limit:
            raise ValueError(f"the prompt has {len(ids)} tokens, there is room for {limit}; shorten it")
        return ids


class Talker:
    """Answers prompts with one policy."""

    def __init__(self, model: ModelConfig, params: Any, tokenizer: Tokenizer, settings: ChatSettings,
                 search: SearchSettings):  # fmt: skip
        """`search`: of `search`; its sizes must fit the model. Raises: ValueError if the settings do not."""
        self._model, self._tokenizer, self._settings, self._search = model, tokenizer, settings, search
        self._params = decoding_params(jax.tree.map(jnp.asarray, params), RolloutSettings(), model, 1)
        self._num_turns = 0
        if self.prompt_limit < 1:
            raise ValueError(
                f"max_tokens={settings.max_tokens} leaves no room for a prompt: the model has "
                f"{model.max_position_embeddings} positions; lower --max-tokens"
            )

    @property
    def prompt_limit(self) -> int:
        """Tokens of the longest prompt."""
        longest = max(self._settings.max_tokens + PIECE, self._search.max_response_length)
        return min(self._settings.max_prompt, self._model.max_position_embeddings - longest)

    def stream(self, prompt: Sequence[int], check_stop: Callable[[], None]) -> Iterator[str]:
        """Pieces of a sampled response as it grows.

        Args:
          check_stop: called before every piece; may raise.
        """
        settings, self._num_turns = self._settings, self._num_turns + 1
        key = jax.random.fold_in(jax.random.key(settings.seed), self._num_turns)
        depth = -(-settings.max_tokens // PIECE)
        width = min(bucket(len(prompt), _PROMPT_MULTIPLE), self._model.max_position_embeddings - depth * PIECE)
        decode = DecodeSettings(
            num_samples=1, segment_length=PIECE, max_prompt_length=width, max_depth=depth,
            temperature=settings.temperature, top_p=settings.top_p, eos_ids=tuple(self._tokenizer.eos_ids),
        )  # fmt: skip
        tokens = jnp.zeros((1, width), jnp.int32).at[0, : len(prompt)].set(jnp.asarray(prompt, jnp.int32))
        lengths = jnp.array([len(prompt)], jnp.int32)
        pages = _prefill(self._model, self._params, tokens, lengths, depth=depth)
        response: list[int] = []
        shown = 0
        for level in range(depth):
            check_stop()
            request = DecodeRequest(
                prompt_lengths=lengths,
                path_pages=jnp.where(jnp.arange(depth) < level, jnp.arange(depth), -1)[None],
                depth=jnp.array([level], jnp.int32),
                last_token=jnp.array([[*prompt, *response][-1]], jnp.int32),
                child_pages=jnp.array([[level]], jnp.int32),
                row_keys=jax.random.fold_in(key, level)[None, None],
                active=jnp.array([True]),
            )
            pages, segments = _decode(self._model, self._params, pages, request, settings=decode)
            response += segments.tokens[0, 0, : int(segments.lengths[0, 0])].tolist()[
                : settings.max_tokens - len(response)
            ]
            is_over = bool(segments.is_eos[0, 0]) or len(response) >= settings.max_tokens
            text = self._tokenizer.decode(response)
            # A character of several tokens reads U+FFFD until its last one is there.
            if is_over or not text.endswith("\ufffd"):
                yield text[shown:]
                shown = len(text)
            if is_over:
                return

    def search(
        self, prompt: Sequence[int], check_stop: Callable[[], None], show: Callable[[str], None]
    ) -> Found:  # fmt: skip
        """Answers by one tree, without verdicts: every answer counts as a wrong one, so that it looks for others.

        Args:
          check_stop: called between the iterations; may raise.
          show: is told how far the search is.
        Raises:
          ValueError: the temperature is 0.
        """
        self._settings.check_search()
        self._num_turns += 1
        task = _Question(prompt, self._tokenizer, self._num_turns)
        rollout = RolloutSettings(
            num_slots=1, half_batches="no", temperature=self._settings.temperature, top_p=self._settings.top_p,
            prompt_multiple=_PROMPT_MULTIPLE,
        )  # fmt: skip
        sampler = Sampler(
            task, self._model, self._search, rollout, run_key=jax.random.key(self._settings.seed), mesh=None,
            check_stop=check_stop, advance=lambda done, detail: show(f"{detail}; {task.summary()}"),
        )  # fmt: skip
        (group,), statistics = sampler.search(self._params, task.train_problems, (0, 0))
        show(f"{statistics.nodes} nodes, {statistics.tokens} tokens; {task.summary()}")
        texts = [response.text for response in group.responses]
        sureness = [float(r.log_probs.mean()) if r.log_probs is not None else 0.0 for r in group.responses]
        answers = [_answer(text) for text in texts]
        members = most_frequent(answers)
        if not texts:
            return Found("", None, 0, 0)
        best = max(members or range(len(texts)), key=lambda i: sureness[i])
        return Found(texts[best], answers[best], len(members), len(texts))


class _Question:
    """A task of one prompt whose verdicts only say whether there is an answer; it keeps the answers found."""

    mixture = ()
    eval_problems: Sequence[Problem] = ()

    def __init__(self, prompt: Sequence[int], tokenizer: Tokenizer, number: int):
        self.train_problems = [Problem(number, str(number), "-", "-")]
        self.tokenizer, self._prompt = tokenizer, list(prompt)
        self._answers: list[str | None] = []

    def prompt(self, problem: Problem) -> list[int]:
        del problem
        return self._prompt

    def score(self, items: Sequence[tuple[Problem, str]]) -> list[Verdict]:
        found = [_answer(text) for _, text in items]
        self._answers += found
        return [Verdict(0.0, answer is not None) for answer in found]

    def summary(self) -> str:
        """The answer found most often so far."""
        members = most_frequent(self._answers)
        if not members:
            return "no answer yet"
        return (
            f"{len(self._answers)} attempts, best so far {visible(self._answers[members[0]] or '')!r} ({len(members)})"
        )

    def statistics(self) -> dict[str, Any]:
        return {}

    def warm_start(self, step: int) -> None:
        del step

    def close(self) -> None:
        pass


def _answer(text: str) -> str | None:
    """What the box holds; the whole text where no box is begun."""
    answer = final_answer(text)
    return answer if answer is not None or "boxed" in text else text.strip() or None


def most_frequent(answers: Sequence[str | None]) -> list[int]:
    """Positions of the answer that is given most often; the one given first where several are."""
    classes: list[list[int]] = []
    for index, answer in enumerate(answers):
        if answer is None:
            continue
        for members in classes:
            known = answers[members[0]]
            if answer == known or same_answer(answer, known or ""):
                members.append(index)
                break
        else:
            classes.append([index])
    return max(classes, key=len) if classes else []


def visible(text: str) -> str:
    """Text that a terminal only shows: control and direction characters become escapes, but for line ends and tabs."""
    return "".join(
        character
        if character in _SHOWN_CONTROLS or unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Co")
        else character.encode("unicode_escape", "surrogatepass").decode("ascii")
        for character in text
    )


def search_settings(policy: SavedPolicy, settings: ChatSettings) -> SearchSettings:
    """Trees as in the run the policy comes from, lazy ones of 64-token segments for other policies.

    Segments are no longer than these, and as many as a response of `max_tokens` needs: it may end a few tokens later
    than asked, one a segment at most, and never before.
    """
    attempts = settings.trajectories
    longest = _SEGMENT if policy.settings is None else policy.settings.search.segment_length
    depth = -(-settings.max_tokens // longest)
    length = -(-settings.max_tokens // depth)
    if policy.settings is None:
        return SearchSettings(
            expansion="lazy", expansion_width=4, picks_per_step=2, num_trajectories=attempts, segment_length=length,
            max_depth=depth, capacity=attempts * depth + 17, token_budget=attempts * depth * length,
        )  # fmt: skip
    search = policy.settings.search
    room = attempts * depth * search.expansion_width + 1
    if search.are_distinct:
        # Chat cuts the tail off by default, which may leave no token but those of the siblings.
        search = dataclasses.replace(search, siblings="independent", frontier_entropy="path")
    return dataclasses.replace(
        search, num_trajectories=attempts, segment_length=length, max_depth=depth,
        capacity=max(search.capacity, min(room, 4096)), node_budget=0, token_budget=0, confidence="fixed",
        trajectories_if_solved=0,
    )  # fmt: skip


def _check_text(text: str, what: str) -> None:
    """Raises: ValueError for bytes that are no UTF-8, which Python hands on as lone surrogates."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is no UTF-8 text (at character {error.start + 1}); write it in UTF-8") from None


@functools.partial(jax.jit, static_argnames=("model", "depth"))
def _prefill(model: ModelConfig, params: Any, tokens: jax.Array, lengths: jax.Array, *, depth: int) -> Any:
    pages = init_pages(model, 1, depth, PIECE, tokens.shape[1])
    return prefill(model, params, pages, tokens, lengths, jnp.ones(1, bool))


@functools.partial(jax.jit, static_argnames=("model", "settings"), donate_argnums=(2,))
def _decode(model: ModelConfig, params: Any, pages: Any, request: DecodeRequest, *, settings: DecodeSettings) -> Any:
    return decode_children(model, params, pages, request, settings)[:2]
