"""FastAPI with a queue in front of ONNX Runtime: requests that wait share a batch."""

import asyncio
import os
from contextlib import asynccontextmanager

import numpy as np
import onnxruntime as ort
from fastapi import FastAPI, Response

MAX_BATCH = 32
BATCHERS = int(os.environ["BATCHERS"])
WAIT_S = float(os.environ["WAIT_S"])

options = ort.SessionOptions()
options.intra_op_num_threads = int(os.environ["THREADS"])
options.add_session_config_entry("session.intra_op.allow_spinning", os.environ["SPINNING"])
session = ort.InferenceSession("generator.onnx", options, providers=["CPUExecutionProvider"])
queue = asyncio.Queue()


def draw(state, seeds):
    z = np.empty((len(seeds), 64), np.float32)
    for row, seed in zip(z, seeds):
        state.seed(seed)
        row[:] = state.randn(64)
    return session.run(["image"], {"z": z})[0]


async def batch_forever():
    state = np.random.RandomState()
    while True:
        batch = [await queue.get()]
        if WAIT_S:
            await asyncio.sleep(WAIT_S)
        while len(batch) < MAX_BATCH and not queue.empty():
            batch.append(queue.get_nowait())
        images = await asyncio.to_thread(draw, state, [seed for seed, _ in batch])
        for (_, future), image in zip(batch, images):
            if not future.done():
                future.set_result(image.tobytes())


@asynccontextmanager
async def lifespan(app):
    tasks = [asyncio.create_task(batch_forever()) for _ in range(BATCHERS)]
    yield
    for task in tasks:
        task.cancel()


app = FastAPI(lifespan=lifespan)


@app.get("/images/{seed}")
async def read_image(seed: int):
    future = asyncio.get_running_loop().create_future()
    queue.put_nowait((seed, future))
    return Response(await future, media_type="application/octet-stream")
