"""Code blocks of README.md and docs/*.md: which there are, what their markers say, and what they start.

A block in a `bash` or `python` fence is run by `tests/test_docs.py`, unless its first lines say why not:

    # needs: a Slurm cluster       whatever a machine of the tests does not have: a model, a GPU, the network, ...
    # takes: 5 minutes             on two CPU cores; longer than a test may take
    # file: my_task.py             saved under that name for the blocks behind it (a Python block), not run

In a block that is run, WORKDIR stands for the finished run at runs/quickstart.

What a marked block starts by `python -m` is parsed all the same: module, flags, config, settings and their values.
"""

import dataclasses
import pathlib
import re
import shlex

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
LANGUAGES = ("bash", "python")
OTHER_LANGUAGES = ("bibtex", "json", "jsonl", "text", "toml", "yaml", "html", "")

HELP = (
    "Mend it; or, if a test cannot run it, say why in its first line: `# needs: a model`, `# takes: 5 minutes` or "
    "`# file: NAME.py`. docs/README.md tells more."
)
_FENCE = re.compile(r"^( *)```([\w+-]*)[ \t]*$")
_MARKER = re.compile(r"# (needs|takes|file): *(.*?) *$")
_LIKE_MARKER = re.compile(r"#\s*(needs?|takes?|marker|requires?|file)\b", re.IGNORECASE)
_TIME = re.compile(r"(about )?\d+( to \d+)? (seconds?|minutes?|hours?|days?)\b.*")
_COMMAND = re.compile(r"(?<![\w.-])python3? -m ")
_LOOKS_LIKE_SHELL = re.compile(r"^\s*(\$ |python3? |pip |git clone |srun |bash )", re.MULTILINE)


@dataclasses.dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
      page: where it stands, relative to the repository.
      line: number of its fence there.
      language: what stands behind the fence, "" for nothing.
      text: its lines.
    """

    page: str
    line: int
    language: str
    text: str

    @property
    def place(self) -> str:
        return f"{self.page} line {self.line}"

    @property
    def markers(self) -> dict[str, str]:
        """The markers in its leading comment lines. Raises: ValueError for one that is not understood."""
        found = {}
        for line in self.text.splitlines():
            if not line.startswith("#"):
                break
            if match := _MARKER.fullmatch(line):
                name, value = match.groups()
                if not value or (name == "takes" and not _TIME.fullmatch(value)):
                    raise ValueError(
                        f"{self.place}: marker {line!r} says too little; for instance `# takes: 5 minutes`"
                    )
                found[name] = value
            elif _LIKE_MARKER.match(line):
                raise ValueError(f"{self.place}: {line!r} is no marker. {HELP}")
        return found

    @property
    def is_run(self) -> bool:
        return self.language in LANGUAGES and not self.markers


def pages(root: pathlib.Path = REPOSITORY) -> list[str]:
    """README.md and all pages below docs/, sorted."""
    return ["README.md", *sorted(str(path.relative_to(root)) for path in (root / "docs").rglob("*.md"))]


def read_blocks(page: str, root: pathlib.Path = REPOSITORY) -> list[Block]:
    """The fenced blocks of a page. Raises: ValueError for a fence without an end or of an unknown language."""
    found: list[Block] = []
    lines = (root / page).read_text("utf-8").splitlines()
    number = 0
    while number < len(lines):
        if not (match := _FENCE.match(lines[number])):
            number += 1
            continue
        indent, language = match.groups()
        end = next((i for i in range(number + 1, len(lines)) if lines[i].strip() == "```"), None)
        place = f"{page} line {number + 1}"
        if end is None:
            raise ValueError(f"{place}: the block has no end")
        text = "\n".join(line.removeprefix(indent) for line in lines[number + 1 : end])
        if language not in LANGUAGES + OTHER_LANGUAGES:
            raise ValueError(f"{place}: language {language!r}; use bash or python for what can be run, text for output")
        if language == "" and _LOOKS_LIKE_SHELL.search(text):
            raise ValueError(f"{place}: a command in a block without a language; use ```bash, or ```text for output")
        found.append(Block(page, number + 1, language, text))
        number = end + 1
    return found


def commands(block: Block) -> list[list[str]]:
    """What a shell block starts by `python -m`: module and arguments of each. Variables of the shell become 0."""
    text = re.sub(r"\\\n\s*", " ", block.text)
    text = "\n".join(line for line in text.split("\n") if not line.lstrip().startswith("#"))
    found = []
    for match in _COMMAND.finditer(text):
        command = re.sub(r"\$\{?\w+\}?", "0", _until_end(text[match.end() :]))
        found.append(shlex.split(command, comments=True))
    return found


def _until_end(text: str) -> str:
    """The text up to the end of its command: a newline, `;`, `&`, `|`, `>` outside quotes, or a quote never closed."""
    quote, opened = "", 0
    for index, character in enumerate(text):
        if quote:
            quote = "" if character == quote else quote
        elif character in "'\"":
            quote, opened = character, index
        elif character in "\n;&|>":
            return text[:index].removesuffix(" 2")
    # The command stood itself in quotes: ssh --command="python -m experiments.run"
    return text[:opened] if quote else text
