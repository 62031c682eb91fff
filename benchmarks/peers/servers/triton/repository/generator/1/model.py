"""A hand-written Python-backend model: one batch, one run of ONNX Runtime."""

import os
from pathlib import Path

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ["SPINNING"])
        network = Path(args["model_repository"]) / args["model_version"] / "generator.onnx"
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession(network, options, providers=providers)
        self.state = np.random.RandomState()

    def execute(self, requests):
        inputs = [pb_utils.get_input_tensor_by_name(r, "seed").as_numpy() for r in requests]
        seeds = np.concatenate(inputs)[:, 0]
        z = np.empty((len(seeds), 64), np.float32)
        for row, seed in zip(z, seeds):
            self.state.seed(seed)
            row[:] = self.state.randn(64)
        (images,) = self.session.run(["image"], {"z": z})
        responses, start = [], 0
        for rows in inputs:
            image = pb_utils.Tensor("image", images[start : start + len(rows)])
            responses.append(pb_utils.InferenceResponse([image]))
            start += len(rows)
        return responses
