"""FastAPI as its tutorial writes a path operation: one request, one forward."""

import numpy as np
import torch
from fastapi import FastAPI, Response
from network import build
from safetensors.torch import load_file

app = FastAPI()
generator = build().eval()
generator.load_state_dict(load_file("weights.safetensors"))


@app.get("/images/{seed}")
def read_image(seed: int):
    z = np.random.RandomState(seed).randn(1, 64).astype(np.float32)
    with torch.inference_mode():
        sample = generator(torch.from_numpy(z))
    image = (sample * 127.5 + 128).clamp(0, 255).permute(0, 2, 3, 1).to(torch.uint8)
    return Response(image.numpy().tobytes(), media_type="application/octet-stream")
