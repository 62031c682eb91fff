import csv
import io
from pathlib import Path

import pytest
from profiles.reports import example_profile, example_slo

from latentry.contract.errors import BadRequest, NotFound
from latentry.profiling.report.files import points_csv, read_profile, write_report


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    profile = example_profile(slo=example_slo())
    files = write_report(profile, tmp_path / "out")
    assert read_profile(files["json"]) == profile
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        *("report.json", "points.csv", "report.html")
    }


def test_no_report_is_named(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="cannot be read"):
        read_profile(tmp_path / "nothing.json")
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(BadRequest, match="is no report of this `latentry profile`"):
        read_profile(tmp_path / "other.json")


def test_the_csv_has_a_line_for_each_point() -> None:
    rows = list(csv.DictReader(io.StringIO(points_csv(example_profile().points))))
    assert [row["kind"] for row in rows].count("concurrency") == 3
    assert float(rows[0]["throughput_low"]) < float(rows[0]["throughput"])
    assert rows[0]["p99_ms"] == ""
    assert float(rows[0]["queue_ms"]) == 0.1
    assert points_csv(()).count("\n") == 1
