"""``latentry synthesize`` in this process, and what it leaves."""

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

DIGITS = """
model = "digits"
[samples]
per_class = { "0-8" = 12, "9" = 7 }
[output]
shard_size = 40
[[filters]]
kind = "constant"
[[filters]]
kind = "duplicates"
"""


COUNTS = {**{str(label): 12 for label in range(9)}, "9": 7}


Answer = tuple[int, str, str]


Synthesize = Callable[..., Answer]


def write(text: str, name: str = "job.toml") -> Path:
    path = Path(name)
    path.write_text(text)
    return path


def json_of(answer: Answer) -> dict[str, Any]:
    code, out, err = answer
    assert out.count("\n") == 1, (code, out, err)
    value: dict[str, Any] = json.loads(out)
    return value


def samples_in(folder: Path) -> Iterator[tuple[dict[str, Any], NDArray[np.uint8]]]:
    """Yield (what is said of it, its pixels [H, W] or [H, W, 3]) of every sample."""
    for shard in sorted(folder.glob("*.tar")):
        with tarfile.open(shard) as tar:
            for name in tar.getnames():
                if name.endswith(".json"):
                    facts = json.load(tar.extractfile(name) or io.BytesIO())
                    png = tar.extractfile(name.replace(".json", ".png"))
                    assert png is not None
                    yield facts, np.asarray(Image.open(io.BytesIO(png.read())))
