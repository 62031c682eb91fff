"""What the server draws is as good as what was trained: 2,000 images over gRPC, measured."""

import numpy as np
import pytest
from running_server import RunningServer

from latentry.clients import Client
from latentry.training.metrics import SAMPLES, measure_digits, measure_textures

pytestmark = pytest.mark.server


def test_served_digits_teach_a_classifier_to_read_real_ones(triton: RunningServer) -> None:
    labels = np.arange(SAMPLES) % 10
    with Client(triton.url) as client:
        served = client.generate("digits", seeds=range(SAMPLES), class_label=labels)
    metrics = measure_digits(served.images, labels)
    assert metrics["label_agreement"] >= 0.97
    assert metrics["classifier_accuracy"] >= 0.93  # a collapsed generator gets 0.74


def test_served_textures_are_of_every_source_and_no_copies(triton: RunningServer) -> None:
    with Client(triton.url) as client:
        chunks = [chunk.images for chunk in client.stream("textures", seeds=range(SAMPLES))]
    metrics = measure_textures(np.concatenate(chunks), np.zeros(SAMPLES, np.int64))
    shares = [value for name, value in metrics.items() if name.startswith("share_")]
    assert len(shares) == 3
    assert min(shares) >= 0.15
    assert metrics["near_copies"] < 0.01
