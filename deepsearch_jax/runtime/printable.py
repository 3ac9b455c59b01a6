"""Text that others wrote, on one line of a terminal or a log."""


def printable(text: str) -> str:
    r"""`text` with everything that is no visible character or space written as its escape, `\n` or `\u202e`.

    Problem ids, sources and answers come from files and from a model: as they are, they could start a line that looks
    like one of ours, move the cursor, change colours, or turn the order of letters round.
    """
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
