"""The results of a suite as one HTML file that needs nothing else: tables, and the picture within it."""

import base64
import html
import pathlib

_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:1400px;margin:2em auto;padding:0 1em;color:#222}
table{border-collapse:collapse;margin:1em 0;font-size:13px;display:block;overflow-x:auto}
td,th{border:1px solid #ddd;padding:3px 8px;text-align:left;white-space:nowrap}th{background:#f4f4f4}
img{max-width:100%}code{background:#f4f4f4;padding:0 3px}"""


def page(title: str, markdown: str, pictures: list[pathlib.Path]) -> str:
    """HTML of the Markdown that `tables` writes: headings, paragraphs, tables, pictures by their file name."""
    body: list[str] = []
    rows: list[str] = []

    def close_table() -> None:
        if rows:
            head, *rest = rows
            lines = [_cells(head, "th"), *(_cells(row, "td") for row in rest[1:])]
            body.append("<table>" + "\n".join(f"<tr>{line}</tr>" for line in lines) + "</table>")
            rows.clear()

    by_name = {picture.name: picture for picture in pictures}
    for line in markdown.splitlines():
        if line.startswith("| "):
            rows.append(line)
            continue
        close_table()
        if line.startswith("#"):
            level = len(line) - len(line.lstrip("#"))
            body.append(f"<h{level}>{_text(line.lstrip('# '))}</h{level}>")
        elif line.startswith("![") and (name := line.rpartition("(")[2].rstrip(")").rpartition("/")[2]) in by_name:
            data = base64.b64encode(by_name[name].read_bytes()).decode()
            body.append(f'<img alt="{html.escape(line[2:].partition("]")[0])}" src="data:image/png;base64,{data}">')
        elif line:
            body.append(f"<p>{_text(line)}</p>")
    close_table()
    head = f"<meta charset='utf-8'><title>{html.escape(title)}</title><style>{_STYLE}</style>"
    return f"<!doctype html><html><head>{head}</head><body>{chr(10).join(body)}</body></html>\n"


def _cells(row: str, tag: str) -> str:
    return "".join(f"<{tag}>{_text(cell.strip())}</{tag}>" for cell in row.strip().strip("|").split("|"))


def _text(text: str) -> str:
    parts = html.escape(text).split("`")
    return "".join(part if i % 2 == 0 else f"<code>{part}</code>" for i, part in enumerate(parts))
