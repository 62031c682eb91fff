"""What a gate saw, as one HTML page with pictures, made of ``report.html.jinja``."""

import base64
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from latentry.contract.images import Uint8, pil_from_uint8
from latentry.export.gates.bounds import LEAST
from latentry.export.gates.gate import GateFinding

REPORT_FILE = "quality.html"
_TEMPLATE = "report.html.jinja"
_STEP_DB = 5
_MOST_SIDE = 256


def report_bytes(model: str, build: str, finding: GateFinding) -> bytes:
    """Return the page about the build of a model, UTF-8, with all of its pictures inside."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        undefined=StrictUndefined,
    )
    page = environment.get_template(_TEMPLATE).render(
        model=model,
        build=build,
        gate=finding.gate,
        faults=finding.faults,
        least=LEAST,
        histogram=list(_histogram(finding.psnr_db)),
        first=finding.first,
        worst=finding.worst,
        picture=_data_uri,
    )
    return page.encode()


def _histogram(psnr_db: NDArray[np.float64]) -> Iterator[tuple[int, int, int]]:
    """Yield (from, to, samples) in steps of 5 dB."""
    steps = np.floor(psnr_db / _STEP_DB).astype(int)
    for step in range(int(steps.min()), int(steps.max()) + 1):
        if count := int((steps == step).sum()):
            yield step * _STEP_DB, (step + 1) * _STEP_DB, count


def _data_uri(image: Uint8) -> str:
    """Return a picture as part of a page; of a large one less, as it is shown small."""
    picture = pil_from_uint8(image)
    picture.thumbnail((_MOST_SIDE, _MOST_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
