"""The transport that draws in this process: which version it takes, and how it draws."""

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from latentry.clients import BadRequest, Client, NotFound
from latentry.contract.errors import EntryError
from latentry.serving.entries.manifests import Build
from latentry.serving.entries.repository import list_entries
from latentry.serving.runtime import local
from latentry.serving.runtime.engines import Engine
from latentry.serving.runtime.engines.registry import load_network
from latentry.serving.runtime.local import LocalTransport


@pytest.fixture
def versions(repository: Path, tmp_path: Path) -> tuple[Path, dict[int, str]]:
    """Return a repository with two versions of one model, and their digests."""
    folder = tmp_path / "model_repository"
    for version, name in ((1, "wide"), (2, "large")):
        shutil.copytree(repository / name / "1", folder / "model" / str(version))
    shutil.copytree(repository / "breaking", folder / "breaking")
    entries = [entry for entry in list_entries(folder)[0] if entry.name == "model"]
    return folder, {entry.version: entry.digest for entry in entries}


def test_the_newest_version_is_drawn_unless_told_otherwise(
    versions: tuple[Path, dict[int, str]],
) -> None:
    folder, digests = versions
    with Client(transport=LocalTransport(folder, ("model",), threads=1)) as client:
        assert client.info("model").model_digest == digests[2]
        assert client.generate("model", seeds=[1]).images.shape == (1, 256, 256, 3)


@pytest.mark.parametrize(("version", "shape"), [(1, (48, 80, 3)), (2, (256, 256, 3))])
def test_the_version_with_a_digest_is_drawn_wherever_it_stands(
    repository: Path,
    versions: tuple[Path, dict[int, str]],
    version: int,
    shape: tuple[int, int, int],
) -> None:
    folder, digests = versions
    transport = LocalTransport(folder, ("model",), threads=1, model_digest=digests[version])
    name = {1: "wide", 2: "large"}[version]
    alone = LocalTransport(repository, (name,), threads=1)
    with Client(transport=transport) as client, Client(transport=alone) as other:
        info = client.info("model")
        assert (info.version, info.model_digest) == (str(version), digests[version])
        images = client.generate("model", seeds=range(5)).images
        assert images.shape == (5, *shape)
        np.testing.assert_array_equal(images, other.generate(name, seeds=range(5)).images)


def test_a_digest_that_no_version_has_is_refused_with_what_there_is(
    versions: tuple[Path, dict[int, str]],
) -> None:
    folder, digests = versions
    expected = f"holds no version of model with the model digest {'0' * 64}; the newest: model "
    with pytest.raises(NotFound, match=expected + digests[2]):
        LocalTransport(folder, ("model",), model_digest="0" * 64)


def test_a_digest_of_another_model_is_not_taken(versions: tuple[Path, dict[int, str]]) -> None:
    folder, digests = versions
    with pytest.raises(NotFound, match="holds no version of breaking with the model digest"):
        LocalTransport(folder, ("breaking",), model_digest=digests[1])
    with pytest.raises(NotFound, match="nosuch"):
        LocalTransport(folder, ("nosuch",), model_digest=digests[1])


def test_a_copy_draws_the_same_version_with_as_many_threads(
    versions: tuple[Path, dict[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, digests = versions
    seen: list[int] = []

    def seeing(artefact: bytes, build: Build, *, threads: int) -> Engine:
        seen.append(threads)
        return load_network(artefact, build, threads=threads)

    monkeypatch.setattr(local, "load_network", seeing)
    made = LocalTransport(folder, ("model",), threads=3, model_digest=digests[1])
    for transport in (made, pickle.loads(pickle.dumps(made))):
        with Client(transport=transport) as client:
            assert client.models() == ["model"]
            assert client.info("model").model_digest == digests[1]
            client.generate("model", seeds=1)
    assert seen == [3, 3]


def test_a_damaged_entry_is_not_drawn_from(versions: tuple[Path, dict[int, str]]) -> None:
    folder, _ = versions
    (folder / "model" / "2" / "perf_input.json").write_text("{}")
    with pytest.raises(EntryError, match=r"perf_input\.json was changed"):
        LocalTransport(folder, ("model",))


def test_files_of_a_stream_have_no_axis_of_rows(versions: tuple[Path, dict[int, str]]) -> None:
    folder, _ = versions
    transport = LocalTransport(folder, ("breaking",), threads=1)
    request = {
        "seed": np.arange(3),
        "format": np.array([b"png"], np.object_),
    }
    (reply,) = transport.stream("breaking", iter([request]))
    assert reply.outputs["image.encoded"].shape == (3,)
    assert reply.outputs["image.encoded"][0].startswith(b"\x89PNG")
    transport.close()


def test_streams_files_and_what_is_not_there(repository: Path) -> None:
    with Client(transport=LocalTransport(repository, ("wide", "breaking"), threads=1)) as client:
        assert client.models() == ["breaking", "wide"]
        assert client.health()
        expected = client.generate("wide", seeds=range(20)).images
        chunks = list(client.stream("wide", seeds=range(20), chunk_size=6))
        np.testing.assert_array_equal(np.concatenate([c.images for c in chunks]), expected)
        files = client.generate("wide", seeds=[3, 4], format="png").encoded
        (chunk,) = client.stream("wide", seeds=[3, 4], format="png")
        assert chunk.encoded == files
        with pytest.raises(NotFound, match="'cats' is not being served; these are: breaking, wide"):
            client.info("cats")


def test_a_closed_transport_draws_nothing_and_a_copy_does(repository: Path) -> None:
    transport = LocalTransport(repository, ("wide",), threads=1)
    copied = pickle.loads(pickle.dumps(transport))
    transport.close()
    with pytest.raises(BadRequest, match="this transport is closed; make a new one"):
        transport.infer("wide", {"seed": np.array([[1]])})
    assert copied.infer("wide", {"seed": np.array([[1]])}).result(60).outputs["image"].any()
    copied.close()
