"""A thousand damaged job folders; tests/synthesis/test_hostile.py says how."""

from pathlib import Path

import pytest
from jobs.hostile import attack, make_jobs

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3000)]
pytest.importorskip("pyarrow", reason="jobs need the extra [synthesis]")


def test_a_thousand_damages(
    repository: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = make_jobs(tmp_path, repository)
    for seed in range(1000, 2000):
        attack(made[seed % 3], repository, tmp_path, seed, capsys)
