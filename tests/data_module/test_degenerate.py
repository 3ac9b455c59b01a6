import random

import numpy as np
import pytest

from deepsearch_jax.data.degenerate import DegenerateSettings, is_degenerate, is_garbled, is_repeating

DERIVATION = r"""To find the sum of all integer bases $b>9$ for which $17_b$ is a divisor of $97_b$, we convert:
\[ 17_b = 1 \cdot b + 7 = b + 7, \qquad 97_b = 9b + 7. \]
We need $b+7 \mid 9b+7$. Since $9b + 7 = 9(b+7) - 56$, this holds if and only if
\begin{align*}
b + 7 &\mid 56, \\
b + 7 &\in \{1, 2, 4, 7, 8, 14, 28, 56\}, \\
b &\in \{-6, -5, -3, 0, 1, 7, 21, 49\}.
\end{align*}
Because $b > 9$ only $b = 21$ and $b = 49$ remain, so the sum is $21 + 49 = 70$.

Let us check: $17_{21} = 28$ and $97_{21} = 196 = 7 \cdot 28$; $17_{49} = 56$ and $97_{49} = 448 = 8 \cdot 56$.
The final answer is \(\boxed{70}\)."""

TABLE = "| n | n^2 | n^3 |\n|---|-----|-----|\n" + "".join(f"| {n} | {n**2} | {n**3} |\n" for n in range(60))
ZERO_MATRIX = "\\begin{pmatrix}\n" + "0 & 0 & 0 & 0 & 0 \\\\\n" * 10 + "\\end{pmatrix}"

GOOD = {
    "derivation": DERIVATION,
    "long derivation": "\n\n".join(DERIVATION.replace("56", str(k)) for k in range(30, 50)),
    "table": TABLE,
    "zero matrix cut off": ZERO_MATRIX[: -len("\\end{pmatrix}")],
    "large number": "The number is $1" + "0" * 100,
    "rule of dashes": "Therefore:\n" + "-" * 120,
    "digits of pi": "3." + "".join(random.Random(0).choices("0123456789", k=3000)),
    "greek and mathematics": "Für α, β ∈ ℝ gilt ∀ε>0 ∃δ: |α−β| < δ ⇒ ‖f(α)−f(β)‖ ≤ ε, "
    "𝔽₂ ⊂ ℂ, ℵ₀ < 2^ℵ₀, ∑ᵢ xᵢ² ≥ 0, ℓ²(ℕ), ℘(z), ﬁnite.",
    "chinese": "设 $x$ 为未知数。根据题意，我们有 $2x+3=7$，因此 $x=2$。答案是 \\boxed{2}。",
    "japanese with names": "ピタゴラスの定理により、直角三角形の斜辺は 5 である。（Пифагор, Pythagoras）",
    "names in many scripts": "The theorem of Pythagoras (Пифагор, فيثاغورس, 毕达哥拉斯) " + DERIVATION,
    "letters as symbols": "𝔸𝔹ℂ ℵ₀ℵ₁ℶ₂ 𝒜ℬ 𝐱𝐲𝐳 ᵃᵇ ʼʼ ℝℚℤ ｘｙ 和 Ж",
    "emoji": "Great question! 🎉 Let's go 🚀👍 The answer is \\boxed{4} ✅",
    "one broken byte": "The caf\ufffd sells 12 muffins, so \\boxed{12}.",
    "written steps": "+8=35-3=32+4=36-4=32+4=36-4=32+4=36-4=32$",
    "code": "def f(n):\n\tif n < 2:\n\t\treturn n\n\treturn f(n - 1) + f(n - 2)\n" * 2,
    "empty": "",
    "one letter": "a",
}

REPEATING = {
    "word": "The answer is " + "the " * 200,
    "character": "So x = 0." + "0" * 400,
    "white space": "Let us begin." + "\n" * 400,
    "sentence": DERIVATION[:300] + "Wait, let me check this again. " * 30,
    "cut off in the middle": "Hm. " + "We know that $a = b$, hence $b = a$. " * 20 + "We know th",
    "white space behind": "Hm. " + "We know that $a = b$, hence $b = a$. " * 20 + "\n\n",
    "paragraph": DERIVATION[:350] + ("\n" + DERIVATION[350:650]) * 5,
    "latex": r"\frac{1}{2} + \cdots " * 40,
    "chinese": "因此，答案是2。" * 60,
}

_RANDOM = random.Random(1)
GARBLED = {
    "replacement": "The sum is \ufffd\ufffd\ufffd of \ufffd\ufffd the \ufffd which",
    "control": "x\x00\x01\x02 = \x7f\x80 3",
    "unassigned and private": "ab\ue000\ue001\U000e0fff\u0378 cd",
    "scripts": "asyarakat ский lassen ได้รับ yalty كتاب 的话 שלום ίας ROOT հայ",
    "vocabulary soup": "".join(
        _RANDOM.choice(["ąż", "ный", "ขอ", "عند", "的", "गया", "ROOT", "();", "עצמ", " the", "_num", "한"])
        for _ in range(150)
    ),
}


@pytest.mark.parametrize("name", GOOD)
def test_honest_samples_pass(name):
    assert not is_repeating(GOOD[name])
    assert not is_garbled(GOOD[name])
    assert not is_degenerate(GOOD[name])


@pytest.mark.parametrize("name", REPEATING)
def test_endless_repetition_is_seen(name):
    assert is_repeating(REPEATING[name])
    assert is_degenerate(REPEATING[name])


@pytest.mark.parametrize("name", REPEATING)
def test_repetition_that_comes_to_an_end_passes(name):
    assert not is_repeating(REPEATING[name] + r" So the answer is \boxed{7}.")


@pytest.mark.parametrize("name", GARBLED)
def test_garbage_is_seen(name):
    assert is_garbled(GARBLED[name])
    assert is_degenerate(GARBLED[name])


@pytest.mark.parametrize("period", [1, 2, 7, 128])
@pytest.mark.parametrize("kind", [list, np.asarray])
def test_token_ids_repeat(period, kind):
    """By hand: the end must cover max(120, 4 * period) ids, one less is not enough."""
    piece = list(range(1000, 1000 + period))
    needed = max(120, 4 * period)
    tail = (piece * needed)[:needed]
    start = [5, 6, 7]  # an id before the tail that breaks the period
    assert is_degenerate(kind(start + tail))
    assert is_repeating(kind(tail))
    assert not is_degenerate(kind(start + tail[1:]))
    assert not is_degenerate(kind([*start, *tail, 9]))
    assert not is_degenerate(kind([]))


def test_a_period_beyond_the_limit_passes():
    assert not is_repeating(list(range(129)) * 8)
    assert is_repeating(list(range(129)) * 8, DegenerateSettings(max_period_tokens=129))


def test_thresholds_are_settings():
    assert not is_garbled("ab\ufffd\ufffd\ufffd")
    assert is_garbled("ab\ufffd\ufffd\ufffd", DegenerateSettings(min_bad=3))
    assert not is_garbled(GARBLED["scripts"], DegenerateSettings(max_foreign_scripts=20))
    assert is_repeating("no no no no ", DegenerateSettings(min_repeated_chars=1))
    assert not is_repeating("no no no no ", DegenerateSettings(min_repeated_chars=1, min_repeats=5))
    for change, message in [
        ({"max_bad_share": 1.5}, r"max_bad_share=1\.5"),
        ({"min_repeats": 1}, "min_repeats=1"),
        ({"max_period_chars": 0}, "max_period_chars=0"),
    ]:
        with pytest.raises(ValueError, match=message):
            DegenerateSettings(**change)


def test_recorded_solutions_pass(shared_dir):
    from deepsearch_jax.data.problems import load_problems

    solutions = []
    for name in ("gsm8k_test", "math500", "minerva", "olympiadbench"):
        for problem in load_problems(shared_dir / "data" / "eval" / f"{name}.jsonl.gz"):
            solution = problem.metadata.get("solution")
            solutions += solution if isinstance(solution, list) else [solution] if solution else []
    assert len(solutions) > 2000
    assert [s[-300:] for s in solutions if is_degenerate(s)] == []
