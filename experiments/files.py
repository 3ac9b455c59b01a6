"""What the commands that write pages share: finding runs, data within a page, and files that are never half there."""

import json
import os
import pathlib
from typing import Any

_MAX_HINTS = 5


def runs_below(path: pathlib.Path) -> str:
    """ " itself, but there are runs in it: ..." for a folder that has some below; "" for others."""
    found = sorted(str(file.parent.relative_to(path)) for file in path.glob("**/metrics.jsonl"))
    if not found:
        return ""
    more = f" and {len(found) - _MAX_HINTS} more" if len(found) > _MAX_HINTS else ""
    return f" itself, but there are runs in it: {', '.join(found[:_MAX_HINTS])}{more}"


def embedded(value: Any) -> str:
    """JSON that can stand within a script element: nothing in it can end the element or begin a tag."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def write_whole(path: pathlib.Path, content: bytes) -> None:
    """Writes a file so that a reader sees the old one or the new one."""
    if path.is_dir():
        raise ValueError(f"{path} is a directory; name a file")
    temporary = path.with_name(path.name + ".tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
