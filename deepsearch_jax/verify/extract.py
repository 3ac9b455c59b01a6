"""Finding the answer: the last complete box of a response (mode `math`)."""

import re

# One alternation, leftmost first: an escaped brace is a character, not structure; `\\` eats its partner. Pairs are
# taken many at a time: looking for a box behind each of a million backslashes would take hours.
_STRUCTURE = re.compile(r"(?P<box>\\++boxed\s*+\{)|(?:\\\\)++|\\.|(?P<brace>[{}])", re.DOTALL)


def last_complete_box(text: str) -> str | None:
    """Content of the last ``\\boxed{...}`` of `text` whose braces close, or None.

    Of nested complete boxes the outermost is taken; a box that never closes is skipped, not mended. One pass with a
    stack of open braces, so thousands of open boxes cost no more than as many letters.
    """
    stack: list[tuple[bool, int]] = []  # (is a box, where its content begins) of each open brace
    last: tuple[int, int] | None = None
    for match in _STRUCTURE.finditer(text):
        if match.lastgroup == "box" or match.group() == "{":
            stack.append((match.lastgroup == "box", match.end()))
        elif match.lastgroup == "brace" and stack:
            is_box, begin = stack.pop()
            if is_box:  # an outer box closes later than the boxes inside it, so it replaces them
                last = (begin, match.start())
    return None if last is None else text[last[0] : last[1]]
