"""The two networks, made once: weights, the exported graph, Latentry's entry, right answers."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx.utils

# Before the import, as Latentry's own engine does; the peers' servers inherit it.
os.environ["ORT_DISABLE_TELEMETRY"] = "1"

import onnxruntime
import torch
from numpy.typing import NDArray
from peers.catalogue import FOLDER, LATENTRY_EXPORT, MODEL, SERVERS
from safetensors.torch import save_file

from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.training.architectures import build

CHECKED_SEEDS = range(32)
IMAGE_BYTES = 64 * 64 * 3
_Z_DIM = 64
_CALIBRATION_BATCHES = 8


@dataclass(frozen=True)
class Network:
    """A DCGAN at 64x64.

    Attributes:
        name: ``small`` is the network of benchmarks/serving.py.
        width: Channels of its last hidden layer.
    """

    name: str
    width: int

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of one image."""
        widths = [8 * self.width, 4 * self.width, 2 * self.width, self.width, 3]
        count = _Z_DIM * widths[0] * 16
        for layer in range(4):
            count += widths[layer] * widths[layer + 1] * 16 * (4 * 2**layer) ** 2
        return count


NETWORKS = {network.name: network for network in (Network("small", 64), Network("heavy", 208))}


@dataclass(frozen=True)
class Artefacts:
    """What was made of a network.

    Attributes:
        network: Which one.
        folder: Holds what peers are given: ``weights.safetensors``, ``generator.onnx``,
            ``network.py`` and ``model_repository``.
        reference: The images of the checked seeds, uint8 [N, 64, 64, 3].
    """

    network: Network
    folder: Path
    reference: NDArray[np.uint8]


def make(network: Network, home: Path) -> Artefacts:
    """Make the files of a network under ``home``, or take those that are there."""
    folder = home / network.name
    done = folder / "made.json"
    sources = [FOLDER / "network.py", Path(__file__)]
    recipe = {"width": network.width, "sources": [path.read_text() for path in sources]}
    if not done.exists() or json.loads(done.read_text()) != recipe:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        shutil.copy(FOLDER / "network.py", folder)
        shutil.copy(SERVERS / "latentry" / "spec.json", folder)
        save_file(weights(network), folder / "weights.safetensors")
        _export(network, folder)
        exported = next(folder.glob(f"model_repository/{MODEL}/*/builds/*/generator.onnx"))
        # ONNX Runtime computes every output, asked for or not, and the others are Latentry's own.
        onnx.utils.extract_model(exported, folder / "generator.onnx", ["z"], ["image"])
        done.write_text(json.dumps(recipe))
    return Artefacts(network, folder, draw(folder / "generator.onnx", CHECKED_SEEDS))


def weights(network: Network) -> dict[str, torch.Tensor]:
    """Return the weights of benchmarks/serving.py, its batch normalisations having seen data.

    With those of an untrained network every image is the same grey to within a few levels, and a
    wrong answer would pass for a right one.
    """
    torch.manual_seed(0)
    module = build("dcgan", {"z_dim": _Z_DIM, "width": network.width, "channels": 3})
    for layer in module.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # averages over all batches
    with torch.no_grad():
        for _ in range(_CALIBRATION_BATCHES):
            module(torch.randn(64, _Z_DIM))
    return module.state_dict()


def draw(model: Path, seeds: Sequence[int]) -> NDArray[np.uint8]:
    """Return the images of ``seeds`` by ONNX Runtime with one thread, one at a time."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(model), options, providers=["CPUExecutionProvider"])
    drawer = LatentDrawer(LatentInput(name="z", shape=(_Z_DIM,)))
    images = [session.run(["image"], {"z": drawer.draw([seed])})[0] for seed in seeds]
    return np.concatenate(images)


def _export(network: Network, folder: Path) -> None:
    """Publish as a user of Latentry would."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "WIDTH": str(network.width), "PYTHONPATH": "."}
    subprocess.run(["bash", "-c", LATENTRY_EXPORT], cwd=folder, env=environment, check=True)
