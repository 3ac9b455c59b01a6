"""The last complete box: by hand, and by properties over random nesting."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.verify.extract import last_complete_box


@pytest.mark.parametrize(
    ("text", "content"),
    [
        ("", None),
        ("no box", None),
        (r"\boxed{5", None),
        (r"\boxed 5", None),
        (r"\boxed{}", ""),
        (r"\boxed{1} \boxed{2}", "2"),
        (r"\boxed{5} then \boxed{6", "5"),
        (r"\boxed{x=\boxed{5}}", r"x=\boxed{5}"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1,2\}}", r"\{1,2\}"),
        (r"\boxed{[0,1\}}", r"[0,1\}"),  # an escaped brace is no structure
        (r"} \boxed{5} }", "5"),
        (r"\boxed {5}", "5"),
    ],
)
def test_by_hand(text, content):
    assert last_complete_box(text) == content


balanced = st.recursive(
    st.text(alphabet="ab1+ ,$", max_size=4),
    lambda inner: st.lists(st.one_of(inner, inner.map("{{{}}}".format)), max_size=4).map("".join),
    max_leaves=12,
)


@settings(deadline=None, max_examples=100)
@given(content=balanced, before=st.text(alphabet="x{ }", max_size=8), after=st.text(alphabet="y{ }", max_size=8))
def test_a_balanced_content_comes_back_whole(content, before, after):
    # A stray brace around the box neither opens nor closes it.
    assert last_complete_box(before + "\\boxed{" + content + "}" + after) == content


PIECES = ("\\boxed{", "{", "}", "\\{", "\\}", "\\\\", "1")


@settings(deadline=None, max_examples=200)
@given(text=st.lists(st.sampled_from(PIECES), max_size=30).map("".join) | st.text())
def test_what_comes_back_is_balanced(text):
    content = last_complete_box(text)
    if content is None:
        return
    depth = 0
    rest = content.replace("\\\\", "").replace("\\{", "").replace("\\}", "")
    for char in rest:
        depth += {"{": 1, "}": -1}.get(char, 0)
        assert depth >= 0
    assert depth == 0


def test_many_open_boxes_cost_linear_time():
    begin = time.perf_counter()
    assert last_complete_box("\\boxed{" * 200_000) is None
    assert time.perf_counter() - begin < 5.0  # quadratic would be hours
