"""A grammar of answers that want to be code, to cost time or memory, or to break what prints them.

Everything comes from one `random.Random`: a seed names its cases. `{p}` in a payload is a path that must not come into
being, `{port}` a port that nobody may connect to.
"""

import dataclasses
import random
from collections.abc import Callable

MEGABYTE = 2**20


@dataclasses.dataclass(frozen=True)
class Bait:
    """What a payload tries to reach."""

    path: str = "/nonexistent/bait"
    port: int = 9


@dataclasses.dataclass(frozen=True)
class Case:
    family: str
    response: str
    ground_truth: str


PAYLOADS = (
    "__import__('os').system('touch {p}')",
    "__import__('os').system(\"echo x > {p}\")",
    "open('{p}','w').write('x')",
    "exec(\"open('{p}','w')\")",
    "eval(compile('import os; os.mkdir(\"{p}\")','','exec'))",
    "().__class__.__bases__[0].__subclasses__()",
    "(lambda f: f('{p}','w'))(open)",
    "__import__('socket').create_connection(('127.0.0.1',{port}))",
    "__import__('urllib.request').request.urlopen('http://127.0.0.1:{port}/')",
    "__import__('subprocess').run(['touch','{p}'])",
    "__import__('ctypes').CDLL(None).system(b'touch {p}')",
    "pickle.loads(b\"cos\\nsystem\\n(S'touch {p}'\\ntR.\")",
    "!!python/object/apply:os.system ['touch {p}']",
    "sympy.preview('x', output='png', filename='{p}')",
    "lambdify(x, \"open('{p}','w')\")(1)",
    "sympify(\"__import__('os').mkdir('{p}')\")",
    "Symbol('x').__class__.__mro__",
    "Integer(9)**9**9**9",
    'S(\'open("{p}","w")\')',
    "plot(x, savefig='{p}')",
    "\\write18{{touch {p}}}",
    "\\immediate\\write18{{touch {p}}}",
    "\\immediate\\openout1={p}\\write1{{x}}",
    "\\input{{/etc/passwd}}",
    '\\input{{|"touch {p}"}}',
    "\\include{{{p}}}",
    "\\directlua{{os.execute('touch {p}')}}",
    "\\csname end\\endcsname",
    "\\def\\x{{\\x\\x}}\\x",
    "\\loop\\iftrue\\repeat",
    "\\href{{http://127.0.0.1:{port}/}}{{5}}",
    "\\includegraphics{{http://127.0.0.1:{port}/x.png}}",
    "`touch {p}`",
    "$(touch {p})",
    "; touch {p} #",
    "| nc 127.0.0.1 {port}",
    "{{{{7*7}}}}",
    "{{0.__class__.__init__.__globals__}}",
    "%s%s%s%n%x",
    "${{jndi:ldap://127.0.0.1:{port}/a}}",
    "<script>fetch('http://127.0.0.1:{port}/')</script>",
    "'; DROP TABLE problems; --",
    '<?xml version="1.0"?><!DOCTYPE x [<!ENTITY e SYSTEM "file:///etc/passwd">]><x>&e;</x>',
    "../../../../etc/passwd",
    "while True: pass",
    "[0]*10**10",
    "'x'*10**10",
    "range(10**18)",
    "9**9**9**9",
    "os._exit(0)",
    "sys.exit()",
    "raise SystemExit",
    "import this",
)
# Where text reaches a parser below the top: indices, bounds, names, subscripts, units.
HOLES = (
    "%s", "\\text{%s}", "\\mathrm{%s}", "\\operatorname{%s}(x)", "x_{%s}", "\\overline{%s}", "\\mathbb{%s}",
    "\\sum_{k=1}^{%s} k", "\\sum_{%s}^{n} k", "\\sum_{k=%s}^{n} k", "\\prod_{k=1}^{5} %s", "\\int_0^1 %s dx",
    "\\int_{%s}^{1} x dx", "\\int_0^1 x d%s", "\\lim_{x\\to %s} x", "\\lim_{%s} x",
    "\\frac{\\partial}{\\partial %s} x^2", "\\sqrt[%s]{2}", "\\frac{%s}{2}", "2^{%s}", "\\log_{%s} 8",
    "5\\ \\text{%s}", "\\begin{%s}1\\end{%s}", "\\begin{pmatrix}%s\\end{pmatrix}", "\\{x \\mid %s\\}",
    "\\int_0^1 \\mathrm{%s} dx", "\\sum_{k=1}^{3} x_{%s}", "\\int_0^1 \\text{%s} dx",
    "\\sum_{k=1}^{3} \\operatorname{%s}(k)",
)  # fmt: skip
CONTROLS = (
    "\x00", "\x07", "\x08", "\x0b", "\x0c", "\r", "\n", "\r\n", "\x1b[2K", "\x1b[31m", "\x1b]0;title\x07", "\x1b[1A",
    "\x1b[?1049h", "\x9b31m", "\x7f", "\x85", "\u2028", "\u2029", "\ufeff", "\n{\"cases\": 200, \"correct\": 200}\n",
    "\nstep 7: reward 1.000\n", "[red]", "[/]", "[link=file:///etc/passwd]", "\x1bP0;0|\x1b\\", "\x0e", "\x1a",
)  # fmt: skip
UNICODE = (
    "\u202e", "\u2066", "\u2069", "\u200b", "\u200d", "\u2060", "\u00ad", "\ud800", "\udfff", "\U000e0041", "\ufe0f",
    "е", "О", "х", "٣", "五", "Ⅷ", "½", "⅚", "²", "ⁿ", "₃", "①", "５", "𝟓", "𝑥", "√", "∛", "∑", "∫", "∞", "π", "±",
    "≤", "∈", "∪", "ﬁ", "ǆ", "İ", "ß", "e\u0301", "\u0301" * 30, "👩‍👩‍👧‍👦",
    "﷽", "％", "⁄", "−", "，",
    "｛", "｝", "＼",
)  # fmt: skip
FUNCTIONS = ("sin", "cos", "tan", "ln", "log", "exp", "arctan", "sinh", "sec", "arcsin")
LEAVES = ("x", "y", "n", "k", "0", "1", "2", "3", "7", "10", "0.5", "-1", "\\pi", "e", "i", "\\infty", "100", "12345")
GOLDS = (
    "5", "0", "\\frac{1}{2}", "2\\sqrt{2}", "(1,2)", "\\{1,2\\}", "x^2+1", "[0,\\infty)", "yes", "(-2,2)", "1,2,5",
    "x=3", "\\begin{pmatrix}1&2\\\\3&4\\end{pmatrix}", "\\sum_{k=1}^n k", "\\frac{n(n+1)}{2}", "e^{i\\pi}", "50\\%",
    "5\\text{ cm}", "x<2", "\\pi", "|x|<2", "\\int_0^1 x dx", "\\mathbb{R}", "\\emptyset", "10^{40}", "\\cos 2x",
)  # fmt: skip
IDENTITIES = (
    ("\\sqrt{8}", "2\\sqrt{2}"), ("(x+1)^2", "x^2+2x+1"), ("\\frac{x^2-1}{x-1}", "x+1"), ("\\sin^2 x+\\cos^2 x", "1"),
    ("x^2<4", "(-2,2)"), ("(0,2)\\cup(1,3)", "(0,3)"), ("\\sum_{k=1}^{n} k", "\\frac{n(n+1)}{2}"),
    ("\\int_0^1 x dx", "1/2"), ("e^{i\\pi}", "-1"), ("60^{\\circ}", "\\frac{\\pi}{3}"),
    ("\\lim_{x\\to 0}\\frac{\\sin x}{x}", "1"), ("2x<4", "x<2"), ("\\sqrt{5+2\\sqrt6}", "\\sqrt2+\\sqrt3"),
    ("\\binom{n}{2}", "\\frac{n(n-1)}{2}"), ("x^2+y^2-1=0", "x^2+y^2=1"),
)  # fmt: skip


def expression(rng: random.Random, depth: int) -> str:
    """Well-formed LaTeX mathematics: what reaches the library and sympy."""
    if depth <= 0 or rng.random() < 0.15:
        return rng.choice(LEAVES)
    part = [expression(rng, depth - 1 - rng.randrange(2)) for _ in range(3)]
    shapes = (
        "\\frac{%s}{%s}", "%s+%s", "%s-%s", "%s\\cdot %s", "(%s)^{%s}", "\\sqrt{%s}", "\\sqrt[%s]{%s}",
        "\\left(%s\\right)", "\\sum_{k=%s}^{%s} %s", "\\prod_{k=%s}^{%s} %s", "\\int_{%s}^{%s} %s dx",
        "\\lim_{x\\to %s} %s", "|%s|", "(%s)!", "\\binom{%s}{%s}", "\\int %s dx", "%s^{%s^{%s}}", "\\log_{%s} %s",
        "\\max(%s,%s)", "\\lfloor %s\\rfloor", "\\frac{d}{dx} %s", "\\overline{%s}", "\\gcd(%s,%s)", "%s \\bmod %s",
        "%s\\pm %s", f"\\{rng.choice(FUNCTIONS)}(%s)",
    )  # fmt: skip
    shape = rng.choice(shapes)
    return shape % tuple(part[: shape.count("%s")])


def payload(rng: random.Random, bait: Bait) -> str:
    return rng.choice(PAYLOADS).format(p=bait.path, port=bait.port)


def code(rng: random.Random, bait: Bait) -> str:
    hole = rng.choice(HOLES)
    return hole % ((payload(rng, bait),) * hole.count("%s"))


def nested(rng: random.Random, bait: Bait) -> str:
    """The same opening many times, closed or not, sometimes of several kinds."""
    pairs = (
        ("(", ")"), ("[", "]"), ("{", "}"), ("\\{", "\\}"), ("|", "|"), ("\\left(", "\\right)"), ("\\sqrt{", "}"),
        ("-", ""), ("\\frac{1}{", "}"), ("\\frac{", "}{2}"), ("2^{", "}"), ("x_{", "}"), ("\\text{", "}"),
        ("\\overline{", "}"), ("+", ""), ("\\sin(", ")"), ("\\sin ", ""), ("\\sum_{k=1}^{n} ", ""),
        ("\\int_0^1 ", " dx"), ("\\lim_{x\\to 0} ", ""), ("$", "$"), ("\\begin{pmatrix}", "\\end{pmatrix}"),
        ("\\binom{2}{", "}"), ("\\langle ", "\\rangle "), ("\\lfloor ", "\\rfloor "), ("\\boxed{", "}"),
        ("\\operatorname{", "}"), ("\\mathbb{", "}"), ("\\log_{2} ", ""), ("x\\in ", ""), ("1/", ""),
    )  # fmt: skip
    chosen = [rng.choice(pairs) for _ in range(rng.choice((1, 1, 2, 3)))]
    depth = rng.choice((5, 12, 28, 31, 60, 200, 900, 4000))
    opening = "".join(chosen[level % len(chosen)][0] for level in range(depth))
    closing = "".join(chosen[level % len(chosen)][1] for level in reversed(range(depth)))
    return opening + expression(rng, 1) + (closing if rng.random() < 0.8 else closing[: len(closing) // 2])


def towers(rng: random.Random, bait: Bait) -> str:
    """Numbers that nobody can write down."""
    big = rng.choice(("9", "10^{10}", "99999", "10^{100}", "7^{7^7}", "(9!)!", "\\pi", "-3", "0.1", "\\infty", "i"))
    shape = rng.choice(
        (
            "%s^{%s^{%s}}", "(%s)!", "((%s)!)!", "\\binom{%s}{%s}", "\\sum_{k=1}^{%s} k^{%s}", "\\prod_{k=1}^{%s} k",
            "e^{e^{%s}}", "\\sqrt[%s]{%s}", "\\log_{%s} %s", "(a+b+c+d+e)^{%s}", "\\int_0^{%s} x^{%s} dx",
            "%s \\bmod 10", "\\lim_{n\\to\\infty} n^{%s}", "\\gcd(%s,%s)", "1%%^{%s}", "%s^{-%s}",
            "\\sum_{k=1}^{%s} \\frac{1}{k^k}", "\\int_0^1 x^{x^{%s}} dx", "\\prod_{n=1}^{%s} \\sin(n)",
            "%s\\text{ million million million}", "x^{%s}-1",
        )
    )  # fmt: skip
    text = shape % ((big,) * shape.replace("%%", "").count("%s"))
    return text if rng.random() < 0.7 else f"{text}{rng.choice('+-/')}{expression(rng, 1)}"


def digits(rng: random.Random, bait: Bait) -> str:
    count = rng.choice((3, 20, 300, 999, 1001, 1900, 4400, 60_000))
    run = "".join(rng.choice("0123456789") for _ in range(min(count, 50))) * (count // 50 + 1)
    run = run[:count]
    shape = rng.choice(
        ("%s", "-%s", "0.%s", "%s.%s", "%s/%s", "1e%s", "%se-%s", "0.\\overline{%s}", "0.(%s)", "%s\\%%",
         "\\sqrt{%s}", "%s!", "\\frac{%s}{%s}", "%s^{%s}", "%s\\text{ km}", "\\sqrt[%s]{2}",
         "0x%s", "%s,%s", "1_%s", "%s...", "0.%s\\ldots")
    )  # fmt: skip
    return shape % ((run,) * shape.replace("%%", "").count("%s"))


def collections_(rng: random.Random, bait: Bait) -> str:
    """Big matrices, sets, lists, unions; elements that a comparison has to look at."""
    count = rng.choice((2, 5, 30, 63, 64, 65, 200, 700))
    inner = [expression(rng, 1) for _ in range(4)] + [f"\\sqrt{{{rng.randrange(99)}}}", str(rng.randrange(999))]
    items = [rng.choice(inner) for _ in range(count)]
    kind = rng.randrange(8)
    if kind == 0:
        width = rng.choice((1, 2, 4, 8))
        rows = [items[i : i + width] for i in range(0, count, width)]
        name = rng.choice(("pmatrix", "bmatrix", "vmatrix", "array", "cases", "matrix"))
        return f"\\begin{{{name}}}" + "\\\\".join("&".join(row) for row in rows) + f"\\end{{{name}}}"
    if kind == 1:
        return "\\{" + ",".join(items) + "\\}"
    if kind == 2:
        return "(" + ",".join(items) + rng.choice((")", "]"))
    if kind == 3:
        return "\\cup".join(f"({a},{b}]" for a, b in zip(items, items[1:] + items[:1]))
    if kind == 4:
        return rng.choice((" and ", " or ", ";", ", ", " \\quad ")).join(items)
    if kind == 5:
        return rng.choice(("<", "\\le ", "=", "\\ne ", "\\in ")).join(items)
    if kind == 6:
        return "\\pm ".join(items)
    return rng.choice(("+", "-", "\\cdot ", "/", "^", "")).join(items)


def letters(rng: random.Random, bait: Bait) -> str:
    """Foreign characters among mathematics."""
    parts = [rng.choice(UNICODE) if rng.random() < 0.6 else expression(rng, 1) for _ in range(rng.randrange(1, 9))]
    return "".join(parts)


def controls(rng: random.Random, bait: Bait) -> str:
    parts = [rng.choice(CONTROLS) if rng.random() < 0.6 else expression(rng, 1) for _ in range(rng.randrange(1, 9))]
    return "".join(parts)


def repeats(rng: random.Random, bait: Bait) -> str:
    """Runs that make a careless regular expression go back over and over."""
    pieces = (
        "\\", "\\\\", "{", "}", " ", "\t", "\n", ",", "1,", "1,111", "111,111,", "1 111 ", "\\!", "\\,", "{,}", ".",
        "$", "\\text", "\\boxed", "\\boxed ", "\\boxed{", "\\text{a", "\\mathrm ", "e", "1e", "1e1", "and", ", and",
        "a.", "'", "^", "_", "^{", "0", "-", "--", "\\left", "\\right.", "\\hspace{", "(A)", "\\frac", "frac", "sqrt",
        "x=", "\\%", "\\cdot", "\u200b", "⁹", "√1",
    )  # fmt: skip
    run = "".join(rng.choice(pieces) for _ in range(rng.choice((1, 1, 2, 3))))
    count = rng.choice((10, 100, 700, 1900, 20_000)) // len(run) + 1
    return rng.choice(("", "5", "\\text{ ", "x=")) + run * count + rng.choice(("", "5", "}", "!", "x"))


def well_formed(rng: random.Random, bait: Bait) -> str:
    return expression(rng, rng.choice((1, 2, 2, 3, 4)))


def mutated(rng: random.Random, bait: Bait) -> str:
    """A sound answer with a few characters lost, doubled or strayed in."""
    text = list(rng.choice(IDENTITIES)[0] if rng.random() < 0.5 else expression(rng, 2))
    for _ in range(rng.randrange(1, 4)):
        at = rng.randrange(len(text) + 1)
        what = rng.randrange(4)
        if what == 0:
            text[at : at + 1] = []
        elif what == 1:
            text[at:at] = text[at : at + rng.randrange(1, 6)]
        elif what == 2:
            text.insert(at, rng.choice("{}()[]|\\^_,=<>!'&%$#~ \n0"))
        else:
            text.insert(at, rng.choice((*CONTROLS, *UNICODE, "\\sum", "\\int", "lambda", "__")))
        text = text or ["5"]
    return "".join(text)


FAMILIES: dict[str, Callable[[random.Random, Bait], str]] = {
    "code": code, "nested": nested, "towers": towers, "digits": digits, "collections": collections_, "letters": letters,
    "controls": controls, "repeats": repeats, "well_formed": well_formed, "mutated": mutated,
}  # fmt: skip


def wrapped(rng: random.Random, answer: str, bait: Bait) -> str:
    """A response around an answer: usually one box, sometimes boxes in disorder or a megabyte of something."""
    what = rng.random()
    if what < 0.86:
        return f"So \\boxed{{{answer}}}."
    if what < 0.90:
        return f"\\boxed{{5}} \\boxed{{{answer}}} \\boxed{{"
    if what < 0.93:
        return answer
    if what < 0.96:
        return "\\boxed{" * rng.choice((1, 2, 50, 5000)) + answer + "}" * rng.choice((0, 1, 50, 5000))
    if what < 0.995:
        return f"{payload(rng, bait)}\n\\boxed{{{answer}}}\n{rng.choice(CONTROLS)}"
    filler = rng.choice(("x", "\\", "{", "}", "\\boxed{", "9", "$ ", "\n", "\\boxed ", "é", "\\{", "\\text{"))
    filler = filler * (MEGABYTE // len(filler))
    return filler + f"\\boxed{{{answer}}}" if rng.random() < 0.5 else f"\\boxed{{{answer}{filler}}}"


def case(rng: random.Random, bait: Bait) -> Case:
    """One case of the whole grammar."""
    if rng.random() < 0.04:
        pred, gold = rng.choice(IDENTITIES)
        return Case("identities", f"\\boxed{{{pred}}}", gold)
    family = rng.choice(tuple(FAMILIES))
    answer = FAMILIES[family](rng, bait)
    what = rng.random()
    if what < 0.84:
        gold = rng.choice(GOLDS)
    elif what < 0.92:
        gold = answer[:3000]
    else:
        gold = rng.choice(tuple(FAMILIES.values()))(rng, bait)[:3000]
    return Case(family, wrapped(rng, answer, bait), gold)
