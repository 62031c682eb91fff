"""``make demo``'s script."""

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from running_server import RunningServer

from latentry.clients import Client
from latentry.contract.images import grid_from_images

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.server
@pytest.mark.acceptance
def test_the_demo_leaves_its_pictures(
    triton: RunningServer, repository: Path, tmp_path: Path
) -> None:
    script = tmp_path / "demo.py"
    script.write_bytes((ROOT / "demo.py").read_bytes())
    (tmp_path / "training").symlink_to(ROOT / "training")
    # One model is there from an earlier run, the other is not.
    there = tmp_path / "demo" / "model_repository"
    shutil.copytree(repository / "textures", there / "textures")
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=False, timeout=500
    )
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert said.count("nothing was written") == 1
    assert {path.name for path in there.iterdir() if path.name[0] != "."} == {"digits", "textures"}
    with Client(triton.url) as client:
        labels = [i % 10 for i in range(100)]
        digits = client.generate("digits", seeds=range(100), class_label=labels).images
        textures = client.generate("textures", seeds=range(64)).images
    for name, images, columns in (("digits", digits, 10), ("textures", textures, 8)):
        with Image.open(tmp_path / "demo" / f"{name}.png") as picture:
            expected = grid_from_images(images, columns).squeeze()
            np.testing.assert_array_equal(np.asarray(picture), expected)
