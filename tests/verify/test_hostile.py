"""Text that wants to be code, or to cost the machine its time. Nothing runs, nothing is written, nothing takes long."""

import os
import subprocess
import sys
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deepsearch_jax.verify import Status, VerifierPool
from deepsearch_jax.verify.judge import judge

LONG = {
    "commas": "\\boxed{" + ",".join(map(str, range(3000))) + "}",
    "digits": "\\boxed{" + "1" * 50_000 + "}",
    "open boxes": "\\boxed{" * 20_000,
    "open braces": "{" * 100_000 + "\\boxed{6}",
    "minus signs": "\\boxed{" + "-" * 5_000 + "5}",
    "primes": "\\boxed{x" + "'" * 3_000 + "}",
    "brackets": "\\boxed{" + "(" * 900 + "5" + ")" * 900 + "+1}",
    "roots": "\\boxed{" + "\\sqrt{" * 300 + "5" + "}" * 300 + "}",
}
HUGE = [
    r"9^{9^{9^{9}}}+1",
    r"(((9!)!)!)!",
    r"10^{10^{10}}",
    r"2^{2^{2^{2^{2^{2}}}}}",
    r"\binom{10^{12}}{10^{11}}",
    r"(10^9)!",
    r"e^{e^{e^{e^{e^{e}}}}}",
    r"\sum_{k=1}^{10^{100}} \frac{1}{k^k}",
    r"\prod_{k=1}^{10^8} k",
    r"7^{7^{7^{7}}} \bmod 10",
    r"(a+b+c+d+e+f+g+h)^{60}",
]


@pytest.fixture(scope="module")
def pool():
    with VerifierPool(num_workers=2, deadline_s=3.0) as pool:
        yield pool


@pytest.mark.parametrize("name", sorted(LONG))
def test_long_inputs_are_wrong_at_once(pool, name):
    begin = time.perf_counter()
    assert pool.submit(LONG[name], "5").result().score == 0.0
    assert time.perf_counter() - begin < 2.0


def test_text_around_the_box_is_free(pool):
    assert pool.submit("So we go on. " * 20_000 + r"\boxed{5}", "5").result().status is Status.CORRECT
    assert pool.submit(r"\boxed{5" + " " * 50_000 + "}", "5").result().status is Status.CORRECT


@pytest.mark.parametrize("answer", HUGE)
def test_huge_numbers_are_never_computed(pool, answer):
    verdict = pool.submit(f"\\boxed{{{answer}}}", "5").result()
    assert verdict.score == 0.0
    assert verdict.seconds < 5.0


def test_a_tower_equals_itself(pool):
    assert pool.submit(r"\boxed{9^{9^{9^{9}}}}", r"9^{9^{9^9}}").result().status is Status.CORRECT


def test_what_cannot_be_bounded_meets_the_deadline():
    with VerifierPool(num_workers=1, deadline_s=1.0) as pool:
        verdict = pool.submit(r"\boxed{\int_0^1 x^{x^{x^{x^x}}} dx}", "1").result()
        assert verdict.status in (Status.TIMEOUT, Status.INCORRECT, Status.ERROR)
        assert verdict.seconds < 15.0  # with the start of the worker
        assert pool.submit(r"\boxed{\sqrt{8}}", r"2\sqrt{2}").result().status is Status.CORRECT


PAYLOADS = [
    "__import__('os').system('touch {p}')",
    "open('{p}','w')",
    r"\write18{{touch {p}}}",
    "exec(\"open('{p}','w')\")",
    r"\immediate\openout1={p}",
    "`touch {p}`",
    r"\int_0^{{open('{p}','w')}} x dx",
    r"\sum_{{k=open('{p}','w')}}^n k",
    r"\sum_{{k=1}}^{{__import__('os').system('touch {p}')}} k",
    r"\text{{eval(open('{p}','w'))}}",
]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_payloads_leave_no_trace(pool, payload, tmp_path):
    target = tmp_path / "pwned"
    assert pool.submit("\\boxed{" + payload.format(p=target) + "}", "5").result().score == 0.0
    assert os.listdir(tmp_path) == []


IN_A_WORKER = """
import os, sys
from deepsearch_jax.verify import worker
worker.warm_up()
guard = worker.Guard()
sys.addaudithook(guard)
import sympy
module = sympy.__file__
attempts = [
    lambda: open({path!r}, "w"),
    lambda: open("/etc/passwd"),
    lambda: os.system("true"),
    lambda: eval("2+3"),
    lambda: sympy.sympify("2+3"),
    lambda: __import__("subprocess").run(["true"]),
    lambda: os.remove({path!r}),
    lambda: __import__("socket").socket(),
    lambda: os.open({path!r} + ".py", os.O_WRONLY | os.O_CREAT),
    lambda: os.open(module, os.O_RDWR),
    lambda: open(module, "a"),
    lambda: open({path!r} + ".py"),
    lambda: open(module + "/../../secret.py"),
    lambda: open(b"/etc/passwd"),
    lambda: open(os.dup(0)),
    lambda: os.mkdir({path!r}),
    lambda: os.kill(os.getppid(), 0),
    lambda: os.fork(),
    lambda: os.listdir("/"),
    lambda: os.chdir("/"),
    lambda: exec(compile("1", {path!r} + ".py", "exec")),
    lambda: __import__("ctypes").CDLL(None),
    lambda: __import__("pickle").loads(bytes.fromhex("636f730a73797374656d0a2e")),
    lambda: __import__("signal").pthread_kill(0, 0),
    lambda: __import__("mmap").mmap(-1, 10),
    lambda: sympy.lambdify(sympy.Symbol("x"), "x+1"),
    lambda: sympy.parse_expr("1+1"),
]
for number, attempt in enumerate(attempts):
    try:
        attempt()
    except PermissionError:
        continue
    except sympy.SympifyError as error:  # sympy wraps what its reader raised
        continue
    sys.exit(f"a worker could do what it may not: number {{number}}")
events, refused = guard.take()
assert refused >= len(attempts), (events, refused)
assert guard.take() == ({{}}, 0)
import sympy.plotting  # modules are still found
"""


def test_a_worker_refuses_files_processes_sockets_and_evaluation(tmp_path):
    program = IN_A_WORKER.format(path=str(tmp_path / "file"))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert os.listdir(tmp_path) == []


def test_the_library_reader_gets_no_text_to_evaluate(monkeypatch):
    """The library sympifies the numerals of a sum; sympy's own reader, which evaluates, must not see even those."""
    from sympy.parsing import sympy_parser

    from deepsearch_jax.verify.symbolic import library_equal

    def evaluate(*_):
        raise AssertionError("text was evaluated")

    monkeypatch.setattr(sympy_parser, "eval_expr", evaluate)
    assert library_equal(r"\sum_{k=1}^{n} k", r"\frac{n(n+1)}{2}")
    assert not library_equal(r"\sum_{k=1}^{n} k", r"\frac{n(n+2)}{2}")


PIECES = (
    *"0123456789xyzei+-*/^_(){}[]|!,;:=<>'.%$&# ",
    *("\\frac", "\\sqrt", "\\{", "\\}", "\\pm", "\\text{", "\\boxed{", "\\infty", "\\cup", "\\left(", "\\right)"),
    *("\\begin{pmatrix}", "\\end{pmatrix}", "\\\\", "^{", "\\sin", "\\log_", "\\binom", "\\overline{", "\\in", "\\le"),
    *("__import__", "lambda", "eval(", "9^9^9", "∞", "½", "²", "\u200b", "\ud800"),
)


@settings(deadline=None, max_examples=400)
@given(
    answer=st.lists(st.sampled_from(PIECES), max_size=25).map("".join) | st.text(max_size=40),
    gold=st.sampled_from(["5", r"\frac12", "(1,2)", "x^2+1", r"\{1,2\}"]),
)
def test_any_text_is_judged_in_the_parent_without_failing(answer, gold):
    begin = time.perf_counter()
    assert judge(answer, gold) in (True, False, None)
    assert time.perf_counter() - begin < 2.0


@settings(deadline=None, max_examples=100)
@given(text=st.lists(st.sampled_from(PIECES), min_size=1, max_size=12).map("".join))
def test_an_answer_equals_itself_unless_it_is_empty(text):
    assert judge(text, text) in ((True,) if text.strip(" \u200b$.,;{}()[]*\\&#'%") else (True, False))
