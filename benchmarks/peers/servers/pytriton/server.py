"""PyTriton: a batched inference function, in front of ONNX Runtime."""

import os

import numpy as np
import onnxruntime as ort
from pytriton.decorators import batch
from pytriton.model_config import DynamicBatcher, ModelConfig, Tensor
from pytriton.triton import Triton, TritonConfig

DELAY_US = int(os.environ["DELAY_US"])


class Generator:
    def __init__(self):
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["THREADS"])
        options.add_session_config_entry("session.intra_op.allow_spinning", os.environ["SPINNING"])
        providers = ["CPUExecutionProvider"]
        self.session = ort.InferenceSession("generator.onnx", options, providers=providers)
        self.state = np.random.RandomState()

    @batch
    def __call__(self, seed):
        z = np.empty((len(seed), 64), np.float32)
        for row, value in zip(z, seed[:, 0]):
            self.state.seed(value)
            row[:] = self.state.randn(64)
        return self.session.run(["image"], {"z": z})


config = TritonConfig(
    grpc_address="127.0.0.1",
    grpc_port=int(os.environ["PORT"]),
    allow_http=True,
    http_address="127.0.0.1",
    http_port=int(os.environ["HTTP_PORT"]),
    allow_metrics=False,
)
with Triton(config=config) as triton:
    triton.bind(
        model_name="generator",
        infer_func=[Generator() for _ in range(int(os.environ["WORKERS"]))],
        inputs=[Tensor(name="seed", dtype=np.int64, shape=(1,))],
        outputs=[Tensor(name="image", dtype=np.uint8, shape=(64, 64, 3))],
        config=ModelConfig(
            max_batch_size=32, batcher=DynamicBatcher(max_queue_delay_microseconds=DELAY_US)
        ),
    )
    triton.serve()
