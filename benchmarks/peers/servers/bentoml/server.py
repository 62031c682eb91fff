"""BentoML: a service with a batchable API, and one in front of it that takes single requests."""

import os

import bentoml
import numpy as np
import onnxruntime as ort


@bentoml.service(workers=int(os.environ["WORKERS"]), logging={"access": {"enabled": False}})
class Generator:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ["SPINNING"])
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession("generator.onnx", options, providers=providers)
        self.state = np.random.RandomState()

    @bentoml.api(batchable=True, max_batch_size=32, max_latency_ms=int(os.environ["LATENCY_MS"]))
    def draw(self, seeds: np.ndarray) -> np.ndarray:
        z = np.empty((len(seeds), 64), np.float32)
        for row, seed in zip(z, seeds):
            self.state.seed(seed)
            row[:] = self.state.randn(64)
        return self.session.run(["image"], {"z": z})[0]


@bentoml.service(workers=int(os.environ["FRONTS"]), logging={"access": {"enabled": False}})
class Images:
    generator = bentoml.depends(Generator)

    @bentoml.api
    async def generate(self, seed: int) -> bytes:
        images = await self.generator.to_async.draw(np.array([seed]))
        return images[0].tobytes()
