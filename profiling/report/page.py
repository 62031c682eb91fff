"""The report as one HTML page."""

import html
from collections.abc import Iterator, Sequence

from latentry.profiling.report.answers import answers, listed
from latentry.profiling.report.contents import Profile
from latentry.profiling.report.figures import pictures, svg
from latentry.profiling.report.tables import (
    HEADINGS,
    candidate_rows,
    change_rows,
    failed_requests,
    format_rows,
    missing_figures,
    point_rows,
    stream_rows,
)

_CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem;
       color: #222 }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums }
td, th { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #ddd }
td:first-child, th:first-child { text-align: left }
figure { margin: 2rem 0 } figure svg { max-width: 100%; height: auto }
figcaption, .small { color: #555; font-size: .9rem } .bad { color: #b00020 }
"""


def report_html(profile: Profile) -> str:
    """Return one page with tables and pictures; nothing outside it is needed."""
    title = f"Profile of {profile.model}"
    facts = {
        "measured": profile.created,
        "version, model digest": f"{profile.version}, {profile.model_digest[:12]}",
        "engine class": profile.engine_class,
        "served with": listed(profile.configuration),
        "machine": listed(profile.machine),
        "versions": listed(profile.versions),
    }
    parts = [
        f"<h1>{html.escape(title)}</h1>",
        _table(["", ""], [[name, text] for name, text in facts.items()]),
        "<h2>Answers</h2>",
        "<ul>",
        *(f"<li>{html.escape(line)}</li>" for line in answers(profile)),
        "</ul>",
        *(f'<p class="bad">{html.escape(note)}</p>' for note in profile.notes),
    ]
    for picture in pictures(profile):
        caption = html.escape(picture.caption)
        parts.append(
            f"<h2>{html.escape(picture.title)}</h2><figure>{svg(picture.figure)}"
            f"<figcaption>{caption}</figcaption></figure>"
        )
    parts += ["<h2>Tables</h2>", *_tables(profile), "<h2>Method</h2>", "<ul>"]
    parts += [f"<li>{html.escape(line)}</li>" for line in profile.method]
    body = "\n".join([*parts, "</ul>"])
    return (
        f'<!doctype html>\n<html lang="en">\n<meta charset="utf-8">\n<title>{title}</title>\n'
        f"<style>{_CSS}</style>\n<body>\n{body}\n</body>\n</html>\n"
    )


def _tables(profile: Profile) -> Iterator[str]:
    for kind in HEADINGS:
        heading, rows = point_rows(profile.points, kind)
        if rows:
            yield _table(heading, rows)
    for line in missing_figures(profile.points):
        yield f'<p class="small">{html.escape(line)}</p>'
    if profile.streams:
        yield _table(*stream_rows(profile.streams))
    if profile.formats:
        yield _table(*format_rows(profile.formats))
    for line in failed_requests(profile):
        yield f'<p class="bad">{html.escape(line)}</p>'
    if profile.slo and profile.slo.candidates:
        yield _table(*candidate_rows(profile.slo))
    if profile.baseline:
        yield _table(*change_rows(profile.baseline))


def _table(heading: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    def line(cells: Sequence[str], tag: str) -> str:
        return "<tr>" + "".join(f"<{tag}>{html.escape(cell)}</{tag}>" for cell in cells) + "</tr>"

    head = [line(heading, "th")] if any(heading) else []
    return "\n".join(["<table>", *head, *(line(row, "td") for row in rows), "</table>"])
