"""FastAPI with a queue in front of PyTorch: requests that wait share a forward."""

import asyncio
import os
from contextlib import asynccontextmanager

import numpy as np
import torch
from fastapi import FastAPI, Response
from network import build
from safetensors.torch import load_file

MAX_BATCH = 32
BATCHERS = int(os.environ["BATCHERS"])
WAIT_S = float(os.environ["WAIT_S"])

torch.set_num_threads(int(os.environ["THREADS"]))
generator = build().eval()
generator.load_state_dict(load_file("weights.safetensors"))
queue = asyncio.Queue()


@torch.inference_mode()
def draw(state, seeds):
    z = np.empty((len(seeds), 64), np.float32)
    for row, seed in zip(z, seeds):
        state.seed(seed)
        row[:] = state.randn(64)
    samples = generator(torch.from_numpy(z))
    images = (samples * 127.5 + 128).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    return images.contiguous().numpy()


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
