"""Versions that nothing was exported for, to be published: their networks are a few letters."""

from typing import Any

import numpy as np
from specs import image, make_spec, z

from latentry.contract.spec import GeneratorSpec
from latentry.serving.entries.examples import example_request
from latentry.serving.entries.goldens import Goldens, golden_bytes
from latentry.serving.entries.manifests import (
    Build,
    ExportRecord,
    GoldenRecord,
    Model,
    Parity,
    ServingPart,
    stored_model,
)
from latentry.serving.entries.publishing import (
    Draft,
)
from latentry.serving.entries.sealed import file_record

SPEC = make_spec([z(4)], [image(2, 2, 1)])
PARITY = Parity(
    engine_class="none",
    seeds=8,
    batch_sizes=(1, 3, 7, 32),
    tolerance=1e-4,
    differences={"image.sample": 1e-6},
    levels=0,
    level_fraction=0.0,
    peak=1.0,
    warnings=(),
)


def make(content: bytes = b"weights", spec: GeneratorSpec = SPEC, **changes: Any) -> Draft:
    outputs = {
        item.name: np.zeros((8, *item.raw.row_shape), item.raw.dtype) for item in spec.outputs
    }
    goldens = golden_bytes(Goldens(example_request(spec, 8), outputs))
    networks = {"generator.onnx": file_record(content)}
    model = stored_model(Model(spec=spec, networks=networks))
    files = {"model.py": b"pass", "perf_input.json": b"{}"}
    made: dict[str, Any] = {"tools": {}, "host": "none", "created": "2026-01-01T00:00:00+00:00"}
    return Draft(
        model,
        ExportRecord(
            model=model.digest,
            checkpoint_digest="0",
            architecture="none",
            opset=18,
            files={name: file_record(data) for name, data in files.items()},
            **made,
        ),
        Build(
            model=model.digest,
            engine="onnxruntime",
            precision="fp32",
            artefacts=networks,
            goldens=GoldenRecord(count=8, engine_class="none"),
            files={"goldens.npz": file_record(goldens)},
            **{"parity": PARITY, "serving": ServingPart(), **made, **changes},
        ),
        files,
        {"generator.onnx": content, "goldens.npz": goldens},
    )
