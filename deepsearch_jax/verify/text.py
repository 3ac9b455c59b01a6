"""Rewriting an answer into one plain LaTeX dialect before it is parsed. Strings to strings, every step linear."""

import re
import unicodedata

# Beyond our grammar but within the library's: decided in a worker.
LIBRARY_WORDS = re.compile(r"\\(?:sum|prod|int|iint|iiint|oint|lim|partial|nabla)(?![A-Za-z])")
MAX_CHARS = 2000  # a longer answer is compared as text only; real answers are below 300

_SUPERSCRIPTS = dict(zip("⁰¹²³⁴⁵⁶⁷⁸⁹⁺⁻⁼⁽⁾ⁿⁱ", "0123456789+-=()ni"))
_SUBSCRIPTS = dict(zip("₀₁₂₃₄₅₆₇₈₉₊₋₍₎ₙ", "0123456789+-()n"))
_SYMBOLS = {
    **dict.fromkeys("−–—‒‐‑﹣－", "-"),
    **dict.fromkeys("×✕✖⨯", r"\times "),
    **dict.fromkeys("·⋅∙•", r"\cdot "),
    **dict.fromkeys("÷", "/"),
    **dict.fromkeys("∕⁄", "/"),
    **dict.fromkeys("∣❘", "|"),
    **dict.fromkeys("′’‘ʹ", "'"),
    "″": "''",
    "∞": r"\infty ",
    "π": r"\pi ",
    "√": r"\sqrt ",
    "∛": r"\sqrt[3]",
    "±": r"\pm ",
    "∓": r"\mp ",
    "≤": r"\le ",
    "⩽": r"\le ",
    "≥": r"\ge ",
    "⩾": r"\ge ",
    "≠": r"\ne ",
    "≈": r"\approx ",
    "≡": r"\equiv ",
    "∈": r"\in ",
    "∪": r"\cup ",
    "∩": r"\cap ",
    "∖": r"\setminus ",
    "∅": r"\emptyset ",
    "⌀": r"\emptyset ",
    "ℝ": r"\mathbb{R}",
    "ℤ": r"\mathbb{Z}",
    "ℚ": r"\mathbb{Q}",
    "ℕ": r"\mathbb{N}",
    "ℂ": r"\mathbb{C}",
    "°": r"^{\circ}",
    "º": r"^{\circ}",
    "⟨": r"\langle ",
    "⟩": r"\rangle ",
    "〈": r"\langle ",
    "〉": r"\rangle ",
    "⌊": r"\lfloor ",
    "⌋": r"\rfloor ",
    "⌈": r"\lceil ",
    "⌉": r"\rceil ",
    "→": r"\to ",
    "…": r"\ldots ",
    "∫": r"\int ",
    "∑": r"\sum ",
    "∏": r"\prod ",
    "％": "%",
    "﹪": "%",
    "€": r"\euro ",
    "£": r"\pounds ",
    "¥": r"\yen ",
    "ϕ": r"\phi ",
    "ε": r"\epsilon ",
    "ϵ": r"\epsilon ",
}
_GREEK = "alpha beta gamma delta zeta eta theta iota kappa lamda mu nu xi rho sigma tau upsilon phi chi psi omega"
for _name in _GREEK.split():  # Unicode spells lambda without b
    _latex = _name.replace("lamda", "lambda")
    _SYMBOLS[unicodedata.lookup(f"GREEK SMALL LETTER {_name.upper()}")] = f"\\{_latex} "
for _name in ("gamma", "delta", "theta", "lamda", "xi", "pi", "sigma", "phi", "psi", "omega"):
    _latex = _name.replace("lamda", "lambda").capitalize()
    _SYMBOLS[unicodedata.lookup(f"GREEK CAPITAL LETTER {_name.upper()}")] = f"\\{_latex} "
_INVISIBLE = ("Cf", "Cc")  # zero-width spaces and joiners, direction marks, control characters


def _plain_character(char: str) -> str:
    """One non-ASCII character in LaTeX: digits of any script, full-width forms, vulgar fractions, math symbols."""
    if char in _SYMBOLS:
        return _SYMBOLS[char]
    category = unicodedata.category(char)
    if category == "Nd":
        return str(unicodedata.decimal(char))
    if category in _INVISIBLE or "\ufe00" <= char <= "\ufe0f":  # the latter pick a glyph, not a meaning
        return ""
    if category in ("Zs", "Zl", "Zp"):
        return " "
    if category == "No" and "VULGAR" not in unicodedata.name(char, ""):  # a circled or encircled number is a label
        return char
    decomposed = unicodedata.normalize("NFKC", char)
    if "⁄" in decomposed:  # a vulgar fraction such as one half
        top, bottom = decomposed.split("⁄", 1)
        return f"\\frac{{{top}}}{{{bottom}}}" if bottom else char
    if len(decomposed) == 1 and ord(decomposed) < 128:  # full-width and mathematical letters, digits and signs
        return decomposed
    return _SYMBOLS.get(decomposed, char)  # letters of other scripts stay: a Cyrillic letter is not a zero


def fold_unicode(text: str) -> str:
    """Replaces non-ASCII characters by their LaTeX or ASCII meaning; a superscript becomes an exponent."""
    if text.isascii():
        return text
    out: list[str] = []
    script = ""  # the sign, ^ or _, of the run of raised or lowered characters we are in
    for char in text:
        kind = "^" if char in _SUPERSCRIPTS else "_" if char in _SUBSCRIPTS else ""
        if kind != script:
            out.append("}" if script else "")
            out.append(kind + "{" if kind else "")
            script = kind
        if kind:
            out.append(_SUPERSCRIPTS[char] if kind == "^" else _SUBSCRIPTS[char])
        else:
            out.append(char if char < "\x80" else _plain_character(char))
    out.append("}" if script else "")
    # A root sign covers the number or letter run after it: without braces TeX would give it one digit.
    return re.sub(r"\\sqrt (\d+)", r"\\sqrt{\1}", "".join(out))


_DROPPED = re.compile(
    r"\\(?:displaystyle|textstyle|scriptstyle|limits|nolimits|hspace\*?\{[^{}]*\}|hfill|strut|nonumber|notag"
    r"|[bB]igg?[lrm]?|left(?=\\?[.|(\[{<]|\\[lL])|right(?=\\?[.|)\]}>]|\\[rR]))(?![A-Za-z])"
)
_RENAMED = {
    "dfrac": "frac",
    "tfrac": "frac",
    "cfrac": "frac",
    "dbinom": "binom",
    "tbinom": "binom",
    "leq": "le",
    "leqslant": "le",
    "geq": "ge",
    "geqslant": "ge",
    "neq": "ne",
    "varnothing": "emptyset",
    "lbrace": "{",
    "rbrace": "}",
    "lvert": "vert",
    "rvert": "vert",
    "ast": "cdot",
    "div": "/",
    "colon": ":",
    "mbox": "text",
    "textnormal": "text",
    "textrm": "text",
    "textup": "text",
    "textsf": "text",
    "textit": "text",
    "textbf": "text",
    "texttt": "text",
    "emph": "text",
    "unit": "text",
    "backslash": "setminus",
    "smallsetminus": "setminus",
    "exponentialE": "e",
    "imath": "i",
    "varphi": "phi",
    "varepsilon": "epsilon",
    "vartheta": "theta",
    "simeq": "approx",
    "land": "text{and}",
    "wedge": "text{and}",
    "lor": "text{or}",
    "vee": "text{or}",
    "dots": "ldots",
    "cdots": "ldots",
    "dotsc": "ldots",
    "degree": "^{circ}",
    "textdegree": "^{circ}",
    "infin": "infty",
}
_AS_TEXT = {"vert": "|", "{": r"\{", "}": r"\}", "/": "/", ":": ":", "e": "e ", "i": "i ", "^{circ}": r"^{\circ}"}
_COMMAND = re.compile(r"\\([A-Za-z]+)")


def _rename(match: re.Match[str]) -> str:
    name = match.group(1)
    new = _RENAMED.get(name, name)
    return _AS_TEXT.get(new, "\\" + new)


_THIN_JOIN = re.compile(r"(?<=\d)(?:\{,\}|,?\\!|\\,|\\thinspace\s?)(?=\d{3}(?!\d))")
_SPACED_GROUPS = re.compile(r"(?<![\d.,^_])\d{1,3}(?: \d{3})+(?![\d,])")
_COMMA_GROUPS = re.compile(r"(?<![\d.,])[1-9]\d{0,2}(?:,\d{3})+(?!\d)(?!,\d)")
_ENCLOSING = (("$", "$"), (r"\(", r"\)"), (r"\[", r"\]"), ("$$", "$$"), ("**", "**"))
_BOX = re.compile(r"\\(?:boxed|fbox)\s*(?=\{)")


def clean_latex(answer: str) -> str:
    """The answer in the dialect the parser reads: no display marks, no spacing commands, no thousands groups of thin
    spaces, no dollars around or inside, no full stop at the end. Commas are left alone (see `readings`)."""
    text = fold_unicode(answer).replace("\\\\", r" \cr ").strip()  # a row break must not lend out its backslashes
    for _ in range(3):  # `$\( 5 \)$.` needs more than one go
        text = text.rstrip(".,; ").removesuffix("\\cr").strip()
        for left, right in _ENCLOSING:
            if len(text) >= len(left) + len(right) and text.startswith(left) and text.endswith(right):
                text = text[len(left) : len(text) - len(right)].strip()
    text = _THIN_JOIN.sub("", text)
    text = text.replace(r"\!", "").replace(r"\$", r"\dollar ")
    text = text.replace("$", "")
    text = re.sub(r"\\(?:underline|textcolor\{\w*\}|color\{\w*\})(?=\s*\{)", "", text)
    text = re.sub(r"\\[,;:> ]|~|\\q?quad(?![A-Za-z])|\\(?:thin|med|thick)space(?![A-Za-z])", " ", text)
    text = _BOX.sub("", _DROPPED.sub("", _COMMAND.sub(_rename, text)))
    text = _SPACED_GROUPS.sub(lambda match: match.group().replace(" ", ""), text)
    return re.sub(r"\s+", " ", text).strip()


def readings(text: str, *, is_gold: bool) -> list[str]:
    """The one or two ways to read well-formed comma groups (``1,000``): as one number, or as a list.

    The reference is read once: outside brackets as a number, inside them as a tuple or set unless a group starts with
    a zero. A prediction may mean either, so ``100,200`` still equals the list ``100, 200``.
    """

    def joined(match: re.Match[str]) -> str:
        return match.group().replace(",", "")

    as_number = _COMMA_GROUPS.sub(joined, text)
    if as_number == text:
        return [text]
    if not is_gold:
        return [as_number, text]
    in_brackets = text.startswith(("(", "[", r"\{", r"\langle"))
    return [text if in_brackets and not re.search(r",0", text) else as_number]
