"""What an evaluation leaves behind: the circumstances it was run under, and reports in Markdown and HTML."""

from __future__ import annotations

import datetime
import html
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from . import plots
from .machine import describe_machine, installed_versions, where
from .quoted import quoted_tables
from .summary import Pair, Result
from .tables import Table, all_tables


def describe_run(
    command: str,
    models: Sequence[str],
    batch_size: int,
    seed: int,
    limit: int | None,
    device: str | None = "cpu",
) -> dict[str, Any]:
    """Say what was run, where, with which versions, and when (UTC); JSON-ready."""
    return {
        "model": ", ".join(models),
        "models": list(models),
        "command": command,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "batch_size": batch_size,
        "seed": seed,
        "limit_per_group": limit,
        "machine": describe_machine(),
        "device": device,
        "where": where(device),
        "versions": installed_versions(),
    }


def _circumstances(run: Mapping[str, Any]) -> list[str]:
    """What was run, where and with what: plain sentences."""
    versions = ", ".join(f"{name} {version}" for name, version in run["versions"].items())
    limit = "" if run["limit_per_group"] is None else f" At most {run['limit_per_group']} clips a row."
    date, batch, seed = run["date"][:10], run["batch_size"], run["seed"]
    return [
        f"Model `{run['model']}`, {date}, on {run['where']}; batch {batch}, seed {seed}.{limit}",
        f"Made by `{run['command']}` with {versions}.",
        *run.get("notes", ()),
    ]


def render_markdown(run: Mapping[str, Any], results: Sequence[Result], pairs: Sequence[Pair] = ()) -> str:
    """Render the tables in Markdown.

    Args:
        run: What `describe_run` returned, and perhaps ``notes``: sentences that a reader has to know.
        results: In the order of the tables' rows.
        pairs: Comparisons.
    """
    lines = ["# Evaluation", ""]
    for sentence in _circumstances(run):
        lines += [sentence, ""]
    for table in [*all_tables(results, pairs), *quoted_tables()]:
        lines += [f"## {table.title}", "", table.note, "", *_markdown_table(table), ""]
    return "\n".join(lines)


def _markdown_table(table: Table) -> list[str]:
    rule = ["---"] * table.n_text_columns + ["---:"] * (len(table.header) - table.n_text_columns)
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in table.rows]
    return ["| " + " | ".join(cells) + " |" for cells in (table.header, rule, *escaped)]


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Evaluation of {title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1a1a1a; --page: #fff; --note: #444; --line: #ddd; --rule: #888;
  --code: #f2f2f2; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --text: #e4e4e4; --page: #16181b; --note: #b4b4b4; --line: #3a3d42; --rule: #777;
    --code: #262a2f; }}
}}
body {{ font: 15px/1.5 system-ui, sans-serif; color: var(--text); background: var(--page); max-width: 75rem;
  margin: 2rem auto; padding: 0 1rem; overflow-wrap: break-word; }}
h1 {{ font-size: 1.6rem; }}
h2 {{ font-size: 1.2rem; margin-top: 2.2rem; }}
p.note {{ color: var(--note); max-width: 55rem; }}
div.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 0.88rem;
  white-space: nowrap; }}
th, td {{ padding: 0.25rem 0.6rem; border-bottom: 1px solid var(--line); text-align: right; }}
th {{ border-bottom: 2px solid var(--rule); }}
th.word, td.word {{ text-align: left; }}
figure {{ margin: 0; overflow-x: auto; max-width: 48rem; background: #fff; border-radius: 4px; }}
svg {{ display: block; width: 100%; min-width: 36rem; height: auto; }}
code {{ background: var(--code); padding: 0 0.2rem; overflow-wrap: anywhere; }}
</style>
</head>
<body>
<h1>Evaluation of {title}</h1>
{body}
</body>
</html>
"""


def render_html(run: Mapping[str, Any], results: Sequence[Result], pairs: Sequence[Pair] = ()) -> str:
    """Render tables and plots as one page that fetches nothing; arguments as of `render_markdown`."""
    parts = [f"<p>{_inline(sentence)}</p>" for sentence in _circumstances(run)]
    for title, note, svg in _figures(results):
        parts += [f"<h2>{title}</h2>", f'<p class="note">{note}</p>', f"<figure>{svg}</figure>"]
    for table in [*all_tables(results, pairs), *quoted_tables()]:
        parts += [
            f"<h2>{html.escape(table.title)}</h2>",
            f'<p class="note">{_inline(table.note)}</p>',
            f'<div class="wide">{_html_table(table)}</div>',
        ]
    return _PAGE.format(title=html.escape(run["model"]), body="\n".join(parts))


def _figures(results: Sequence[Result]) -> Iterator[tuple[str, str, str]]:
    """Title, explanation and SVG of every plot."""
    found = [
        ("Error rates", "With 95 % intervals over clips.", plots.error_rates(results)),
        (
            "Accuracy and speed",
            "Means over rows, WER and CER alike. Up and left is worse: slower, and with more errors.",
            plots.speed(results),
        ),
        ("Error rates by duration", "", plots.durations(results)),
    ]
    for title, note, svg in found:
        if svg is not None:
            yield title, note, svg
    for family, svg in plots.robustness(results):
        yield f"Robustness: {family}", "", svg


def _inline(text: str) -> str:
    """Escape a sentence, and set its `code` and *emphasis*."""
    escaped = html.escape(text)
    for mark, tag in (("`", "code"), ("*", "em")):
        pieces = escaped.split(mark)
        if len(pieces) % 2 == 0:  # a mark without its other half is a character
            continue
        escaped = "".join(f"<{tag}>{p}</{tag}>" if i % 2 else p for i, p in enumerate(pieces))
    return escaped


def _html_table(table: Table) -> str:
    def row(cells: Sequence[str], tag: str) -> str:
        classes = [' class="word"' if i < table.n_text_columns else "" for i in range(len(cells))]
        shown = (f"<{tag}{c}>{html.escape(cell)}</{tag}>" for c, cell in zip(classes, cells, strict=True))
        return f"<tr>{''.join(shown)}</tr>"

    body = "\n".join(row(cells, "td") for cells in table.rows)
    return f"<table>\n<thead>{row(table.header, 'th')}</thead>\n<tbody>\n{body}\n</tbody>\n</table>"
