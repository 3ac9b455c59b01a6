"""Hypothesis strategies of hostile cases: what the grammar makes, and what only a search over all text finds."""

import random

from hypothesis import Phase, given, seed, settings
from hypothesis import strategies as st

from tests.hostile.grammar import CONTROLS, FAMILIES, GOLDS, HOLES, LEAVES, PAYLOADS, UNICODE, Bait, Case, case

_SIGNS = tuple("0123456789xyzei+-*/^_(){}[]|!,;:=<>'.%$&#~\\\" \t\n")
_COMMANDS = (
    "\\frac", "\\sqrt", "\\{", "\\}", "\\pm", "\\text{", "\\boxed{", "\\cup", "\\left(", "\\right)",
    "\\begin{pmatrix}", "\\\\", "\\end{pmatrix}", "\\sin", "\\log_", "\\binom", "\\overline{", "\\in", "\\le",
    "\\sum_{k=1}^{n}", "\\int_0^1", "\\lim_{x\\to 0}", "dx", "\\prod", "\\partial", "\\mid", "\\mathbb{R}",
    "lambda x:", "__import__", "eval(", "9^9^9", "\\circ", "\\infty",
)  # fmt: skip

pieces = st.lists(
    st.sampled_from((*_SIGNS, *_COMMANDS, *LEAVES, *CONTROLS, *UNICODE)) | st.text(max_size=3), max_size=30
).map("".join)
trees = st.recursive(
    st.sampled_from(LEAVES) | st.text(max_size=2),
    lambda inner: st.one_of(
        st.tuples(inner, inner).map(lambda pair: f"\\frac{{{pair[0]}}}{{{pair[1]}}}"),
        st.tuples(inner, st.sampled_from("+-*/^_=<,"), inner).map("".join),
        st.tuples(st.sampled_from(HOLES), inner).map(lambda pair: pair[0].replace("%s", pair[1])),
        st.lists(inner, max_size=4).map(lambda items: "\\{" + ",".join(items) + "\\}"),
        inner.map("({})".format),
    ),
    max_leaves=12,
)
any_text = st.text(alphabet=st.characters(), max_size=60)  # surrogates, control and format characters included
payloads = st.sampled_from(PAYLOADS).map(lambda text: text.format(p="/nonexistent/bait", port=9))


def cases(bait: Bait | None = None) -> st.SearchStrategy[Case]:
    """Cases for `@given`. Half of them come from the grammar, by a seed that shrinks to 0."""
    bait = bait or Bait()
    answers = st.one_of(pieces, trees, any_text, payloads)
    golds = st.one_of(st.sampled_from(GOLDS), answers)
    written = st.builds(lambda answer, gold: Case("hypothesis", f"\\boxed{{{answer}}}", gold), answers, golds)
    bare = st.builds(lambda answer, gold: Case("hypothesis", answer, gold), answers, golds)
    from_grammar = st.integers(0, 2**32 - 1).map(lambda number: case(random.Random(number), bait))
    return st.one_of(from_grammar, written, written, bare)


def answers_of(family: str) -> st.SearchStrategy[str]:
    """Answers of one family of the grammar."""
    return st.integers(0, 2**32 - 1).map(lambda number: FAMILIES[family](random.Random(number), Bait()))


def drawn(count: int, number: int, bait: Bait) -> list[Case]:
    """`count` cases from a seed, all at once."""
    found: list[Case] = []

    @seed(number)
    @settings(max_examples=count, database=None, deadline=None, phases=[Phase.generate])
    @given(cases(bait))
    def collect(one: Case) -> None:
        found.append(one)

    collect()
    return found[:count]
