"""Ray Serve: a deployment with @serve.batch, in front of ONNX Runtime."""

import asyncio
import os

import numpy as np
import onnxruntime as ort
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response


@serve.deployment(
    num_replicas=int(os.environ["WORKERS"]),
    max_ongoing_requests=128,
    logging_config={"enable_access_log": False},
)
class Generator:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ["SPINNING"])
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession("generator.onnx", options, providers=providers)
        self.state = np.random.RandomState()

    def draw(self, seeds):
        z = np.empty((len(seeds), 64), np.float32)
        for row, seed in zip(z, seeds):
            self.state.seed(seed)
            row[:] = self.state.randn(64)
        return self.session.run(["image"], {"z": z})[0]

    @serve.batch(max_batch_size=32, batch_wait_timeout_s=float(os.environ["WAIT_S"]))
    async def draw_batch(self, seeds):
        return list(await asyncio.to_thread(self.draw, seeds))

    async def __call__(self, request: Request):
        image = await self.draw_batch(int(request.query_params["seed"]))
        return Response(image.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    ray.init(_node_ip_address="127.0.0.1", include_dashboard=False)
    serve.start(http_options={"host": "127.0.0.1", "port": int(os.environ["PORT"])})
    serve.run(Generator.bind(), blocking=True)
