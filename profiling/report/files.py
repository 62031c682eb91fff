"""The files of a report: JSON that is read back, CSV, one HTML page."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from latentry.contract.errors import BadRequest, NotFound
from latentry.contract.files import read_regular, write_atomic
from latentry.profiling.points import Point
from latentry.profiling.report.contents import Profile
from latentry.profiling.report.page import report_html

_JSON_FILE, _CSV_FILE, _HTML_FILE = "report.json", "points.csv", "report.html"
_MOST_BYTES = 64 * 2**20


def read_profile(path: Path) -> Profile:
    """Return the report in a ``report.json``.

    Raises:
        NotFound: There is none.
        BadRequest: It is something else, or of another format.
    """
    try:
        return Profile.model_validate_json(read_regular(path, most=_MOST_BYTES))
    except OSError as error:
        raise NotFound(f"{path} cannot be read: {error.strerror}") from error
    except ValidationError as error:
        raise BadRequest(
            f"{path} is no report of this `latentry profile`; measure the baseline again"
        ) from error


def write_report(profile: Profile, folder: Path) -> dict[str, Path]:
    """Write ``report.json``, ``points.csv`` and ``report.html``; return them by kind.

    Each is whole or as it was.
    """
    folder.mkdir(parents=True, exist_ok=True)
    texts = {
        _JSON_FILE: profile.model_dump_json(indent=1) + "\n",
        _CSV_FILE: points_csv(profile.points),
        _HTML_FILE: report_html(profile),
    }
    for name, text in texts.items():
        write_atomic(folder / name, text.encode())
    return {Path(name).suffix[1:]: folder / name for name in texts}


def points_csv(points: Sequence[Point]) -> str:
    """Return one line for each point; an empty field is a figure that is not to be had."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    rows = [_csv_row(point) for point in points] or [_csv_row(Point(kind="batch", value=0))]
    writer.writerow(rows[0])
    writer.writerows(row.values() for row in rows[: len(points)])
    return out.getvalue()


def import_what_it_needs() -> None:
    """Fail now, not after two minutes, where an extra is missing."""
    import jinja2  # noqa: F401
    import matplotlib.figure  # noqa: F401
    import psutil  # noqa: F401
    import scipy.special  # noqa: F401


def _csv_row(point: Point) -> dict[str, Any]:
    row: dict[str, Any] = {
        name: getattr(point, name) for name in ("kind", "value", "batch", "seconds", "requests")
    }
    percentiles = {f"p{key}_ms": point.latency_ms.get(key) for key in ("50", "90", "95", "99")}
    figures = {"throughput": point.throughput, "mean_ms": point.mean_ms, **percentiles}
    for name, estimate in figures.items():
        for suffix, part in (("", "value"), ("_low", "low"), ("_high", "high")):
            row[name + suffix] = getattr(estimate, part, None)
    phases = ("queue", "compute_input", "compute_infer", "compute_output", "network")
    row |= {f"{name}_ms": point.server_ms.get(name) for name in phases}
    for name in ("server_cores", "server_mib", "load_cores", "delayed_share", "failure"):
        row[name] = getattr(point, name)
    return row
