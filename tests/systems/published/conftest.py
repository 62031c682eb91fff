"""One server for all published systems: small generators cut as theirs are."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from running_server import RunningServer, run_server

from latentry.clients import Client


@pytest.fixture(scope="package")
def published_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("torch", reason="exports need the extra [export]")
    from published.catalogue import PUBLISHED, build_published

    from latentry.export.publish import Source, export_generator

    folder = tmp_path_factory.mktemp("published") / "model_repository"
    for name in PUBLISHED:
        module, spec = build_published(name)
        export_generator(Source(name, spec, module, name, "0" * 64), folder, max_batch_size=8)
    return folder


@pytest.fixture(scope="package")
def published(published_repository: Path) -> Iterator[RunningServer]:
    with run_server(published_repository, "--instances", "1") as server:
        yield server


@pytest.fixture
def client(published: RunningServer) -> Iterator[Client]:
    with Client(published.url) as client:
        yield client
