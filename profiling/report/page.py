"""The report as one HTML page: what stands where is in ``page.html.jinja``."""

from pathlib import Path

from latentry.profiling.report.answers import answers, listed
from latentry.profiling.report.contents import Profile
from latentry.profiling.report.figures import pictures, svg
from latentry.profiling.report.tables import (
    HEADINGS,
    Table,
    candidate_rows,
    change_rows,
    failed_requests,
    format_rows,
    missing_figures,
    point_rows,
    stream_rows,
)

_TEMPLATE = "page.html.jinja"


def report_html(profile: Profile) -> str:
    """Return one page with tables and pictures; nothing outside it is needed."""
    # Here, because a report is also read where no page is made.
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    return environment.get_template(_TEMPLATE).render(
        title=f"Profile of {profile.model}",
        facts=_facts(profile),
        answers=answers(profile),
        notes=profile.notes,
        pictures=pictures(profile),
        svg=svg,
        sweeps=[table for kind in HEADINGS if (table := point_rows(profile.points, kind))[1]],
        missing=missing_figures(profile.points),
        extras=_extras(profile),
        failed=failed_requests(profile),
        comparisons=_comparisons(profile),
        method=profile.method,
    )


def _facts(profile: Profile) -> dict[str, str]:
    return {
        "measured": profile.created,
        "version, model digest": f"{profile.version}, {profile.model_digest[:12]}",
        "engine class": profile.engine_class,
        "served with": listed(profile.configuration),
        "machine": listed(profile.machine),
        "versions": listed(profile.versions),
    }


def _extras(profile: Profile) -> list[Table]:
    tables = [stream_rows(profile.streams)] if profile.streams else []
    return [*tables, format_rows(profile.formats)] if profile.formats else tables


def _comparisons(profile: Profile) -> list[Table]:
    slo, baseline = profile.slo, profile.baseline
    tables = [candidate_rows(slo)] if slo and slo.candidates else []
    return [*tables, change_rows(baseline)] if baseline else tables
