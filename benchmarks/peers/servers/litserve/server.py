"""LitServe: a LitAPI with batching, in front of ONNX Runtime."""

import os

import litserve as ls
import numpy as np
import onnxruntime as ort
from fastapi import Response


class GeneratorAPI(ls.LitAPI):
    def setup(self, device):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ["SPINNING"])
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession("generator.onnx", options, providers=providers)
        self.state = np.random.RandomState()

    def decode_request(self, request):
        self.state.seed(request["seed"])
        return self.state.randn(64).astype(np.float32)

    def predict(self, z):
        return self.session.run(["image"], {"z": z})[0]

    def encode_response(self, output):
        return Response(output.tobytes(), media_type="application/octet-stream")


if __name__ == "__main__":
    api = GeneratorAPI(max_batch_size=32, batch_timeout=float(os.environ["WAIT_S"]))
    server = ls.LitServer(api, accelerator="cpu", workers_per_device=int(os.environ["WORKERS"]))
    server.run(
        host="127.0.0.1",
        port=int(os.environ["PORT"]),
        log_level="warning",
        generate_client_file=False,
    )
