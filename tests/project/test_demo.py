"""``make demo``'s script, twice: the second run publishes nothing new and draws the same."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.server
def test_the_demo_leaves_its_pictures(tmp_path: Path) -> None:
    script = tmp_path / "demo.py"
    script.write_bytes((ROOT / "demo.py").read_bytes())
    (tmp_path / "training").symlink_to(ROOT / "training")
    pictures = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=500
        )
        assert done.returncode == 0, done.stdout + done.stderr
        paths = [tmp_path / "demo" / name for name in ("digits.png", "textures.png")]
        pictures.append([path.read_bytes() for path in paths])
    assert pictures[0] == pictures[1]
    assert "nothing was written" in done.stdout + done.stderr
