"""A model in eight bits by OpenVINO, from the command line: built, proved, served, streamed."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from running_server import LATENTRY, RunningServer, run_server
from specs import image, make_spec, z
from torch import Tensor, nn

from latentry.clients import Client
from latentry.serving.runtime.local import LocalTransport

pytestmark = [pytest.mark.server, pytest.mark.acceptance]

EIGHT_BITS = "openvino-int8"


class Upsampled(nn.Module):
    """z to RGB 32 x 32 by nearest neighbours and convolutions, which eight bits make faster."""

    def __init__(self) -> None:
        super().__init__()
        wide = 96
        self.first = nn.Linear(16, wide * 8 * 8)
        self.body = nn.Sequential(
            *(nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Upsample(scale_factor=2)),
            *(nn.Conv2d(wide, wide, 3, padding=1), nn.ReLU(), nn.Conv2d(wide, 3, 3, padding=1)),
        )

    def forward(self, z: Tensor) -> Tensor:
        return torch.tanh(4 * self.body(self.first(z).reshape(-1, 96, 8, 8)))


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from latentry.export.publish import Source, export_generator

    folder = tmp_path_factory.mktemp("eight_bits") / "model_repository"
    torch.manual_seed(2)
    spec = make_spec([z(16)], [image(32, 32)])
    export_generator(Source("upsampled", spec, Upsampled(), "upsampled", "0" * 64), folder)
    command = [LATENTRY, "build", "upsampled", "--engine", "openvino", "--precision", "int8"]
    # Untrained, so that its pictures differ little from each other.
    command += ["--bound", "frechet=1"]
    done = subprocess.run(
        [*map(str, command), "--repository", str(folder), "--json"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["build"] == EIGHT_BITS
    assert said["speed"] > 1
    assert said["gate"]["samples"] >= 4000
    assert (Path(said["folder"]) / "quality.html").read_text().count("<img ") == 32
    return folder


@pytest.fixture(scope="module")
def server(repository: Path) -> Iterator[RunningServer]:
    with run_server(repository, "--build", f"upsampled={EIGHT_BITS}") as running:
        yield running


def test_a_sample_is_the_same_alone_in_a_batch_streamed_and_here(
    server: RunningServer, repository: Path, tmp_path: Path
) -> None:
    with (
        Client(server.url) as client,
        Client(transport=LocalTransport(repository, build=EIGHT_BITS)) as here,
    ):
        drawn = client.generate("upsampled", seeds=range(40))
        assert drawn.build == EIGHT_BITS
        np.testing.assert_array_equal(
            here.generate("upsampled", seeds=range(40)).images, drawn.images
        )
        chunks = client.stream("upsampled", seeds=range(40), chunk_size=7)
        np.testing.assert_array_equal(np.concatenate([c.images for c in chunks]), drawn.images)
        for seed in (0, 17, 39):
            alone = client.generate("upsampled", seeds=seed)
            np.testing.assert_array_equal(alone.images[0], drawn.images[seed])
        (path,) = alone.save(tmp_path)
    with Image.open(path) as picture:
        assert picture.info["latentry:build"] == EIGHT_BITS
        assert picture.info["latentry:engine_class"].startswith("openvino-")


def test_it_is_not_what_fp32_draws_and_near_it(server: RunningServer, repository: Path) -> None:
    with (
        Client(server.url) as client,
        Client(transport=LocalTransport(repository, build="onnxruntime-fp32")) as plain,
    ):
        eight, whole = (
            c.generate("upsampled", seeds=range(8)).images.astype(int) for c in (client, plain)
        )
    assert 0 < np.abs(eight - whole).mean() < 4
