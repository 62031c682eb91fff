"""A picture in; two pictures, a mask and features out: such a generator behind a real Triton."""

import asyncio
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from running_server import LATENTRY, RunningServer, run_server, wait_until
from specs import image, make_spec, z
from stored.changed_entries import rewrite_goldens
from tritonclient.grpc import InferenceServerClient, InferInput, InferRequestedOutput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from latentry.clients import AsyncClient, BadRequest, Client, InvalidOutput
from latentry.contract.images import decode_image, encode_image
from latentry.contract.kinds.formats import Format
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.profiling.perf_analyzer.program import find_perf_analyzer
from latentry.serving.entries.goldens import Goldens, read_goldens
from latentry.serving.entries.repository import Entry, newest_entries
from latentry.serving.runtime.local import LocalTransport

pytestmark = [pytest.mark.server, pytest.mark.slow]

SIZE = {"height": 24, "width": 20}
STRENGTH = {"name": "strength", "kind": "number", "minimum": 0.0, "maximum": 1.0, "default": 1.0}
SPEC = make_spec(
    [z(6), {"name": "photo", "kind": "picture", **SIZE, "channels": 3}, STRENGTH],
    [
        image(24, 20),
        {"name": "grey", "kind": "picture", **SIZE, "channels": 1},
        {"name": "alpha", "kind": "mask", **SIZE},
        {"name": "features", "kind": "vector", "size": 5},
    ],
)
OUTPUTS = ("image", "grey", "alpha", "features")
PIXELS = OUTPUTS[:3]


@pytest.fixture(scope="module")
def edited(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a repository with the one generator."""
    pytest.importorskip("torch", reason="exports need the extra [export]")
    from sample_generators import build_editor

    from latentry.export.publish import Source, export_generator

    folder = tmp_path_factory.mktemp("edited") / "model_repository"
    source = Source("editor", SPEC, build_editor().eval(), "editor", "0" * 64)
    export_generator(source, folder, max_batch_size=16)
    return folder


@pytest.fixture(scope="module")
def server(edited: Path) -> Iterator[RunningServer]:
    with run_server(edited, "--instances", "1", "--queue-delay-us", "20000") as running:
        yield running


@pytest.fixture(scope="module")
def client(server: RunningServer) -> Iterator[Client]:
    with Client(server.url) as client:
        yield client


@pytest.fixture(scope="module")
def local(edited: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(edited, threads=1)) as client:
        yield client


@pytest.fixture(scope="module")
def raw(server: RunningServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(server.url) as raw:
        yield raw


def photos(count: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.RandomState(seed).randint(0, 256, (count, 24, 20, 3)).astype(np.uint8)


def latents(*seeds: int) -> NDArray[np.float32]:
    item = SPEC.input_of("z", LatentInput)
    assert item is not None
    return LatentDrawer(item).draw(seeds)


def assert_same(found: Any, expected: Any, rows: slice = slice(None)) -> None:
    """Compare all outputs of two results, the expected one cut to ``rows``."""
    for name in OUTPUTS:
        np.testing.assert_array_equal(found[name], expected[name][rows])


def joined(parts: Any) -> dict[str, NDArray[Any]]:
    parts = list(parts)
    return {name: np.concatenate([part[name] for part in parts]) for name in OUTPUTS}


def tensor(name: str, array: Any) -> InferInput:
    made = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def test_all_outputs_are_the_same_whatever_carries_them(
    client: Client, local: Client, server: RunningServer
) -> None:
    most = client.info("editor").max_batch_size
    strengths = np.linspace(0, 1, most, dtype=np.float32)
    whole = client.generate("editor", seeds=range(most), photo=photos(most), strength=strengths)
    assert set(whole.tensors) == set(OUTPUTS)

    def part(start: int, stop: int) -> dict[str, Any]:
        rows = slice(start, min(stop, most))
        seeds = range(most)[rows]
        return {"seeds": seeds, "photo": photos(most)[rows], "strength": strengths[rows]}

    async def in_asyncio() -> tuple[Any, Any]:
        async with AsyncClient(server.url) as asynchronous:
            result = await asynchronous.generate("editor", **part(0, most))
            return result, joined([c async for c in asynchronous.stream("editor", **part(0, most))])

    assert_same(joined(client.generate("editor", **part(i, i + 1)) for i in range(most)), whole)
    assert_same(
        joined(client.generate("editor", **part(i, i + 7)) for i in range(0, most, 7)), whole
    )
    assert_same(joined(client.stream("editor", **part(0, most))), whole)
    assert_same(joined(client.stream("editor", chunk_size=5, **part(0, most))), whole)
    for result in asyncio.run(in_asyncio()):
        assert_same(result, whole)
    assert_same(local.generate("editor", **part(0, most)), whole)
    assert_same(joined(local.stream("editor", chunk_size=5, **part(0, most))), whole)
    for name in OUTPUTS:
        assert len({row.tobytes() for row in whole[name]}) == most


def test_mixed_batches_equal_single_requests(client: Client, local: Client) -> None:
    """Seeds and latents, inputs left out and given, formats, bad ones: all at once."""
    z = latents(*range(40))
    kinds: list[dict[str, Any]] = []
    for seed in range(40):
        request: dict[str, Any] = {"photo": photos(1, seed)}
        request |= {"z": z[seed : seed + 1]} if seed % 3 == 0 else {"seeds": seed}
        if seed % 2:
            request["strength"] = 0.02 * seed
        request["format"] = ("raw", "float", "png")[seed % 4 % 3]
        kinds.append(request)
    with ThreadPoolExecutor(40) as pool:
        asked = [pool.submit(client.generate, "editor", **request) for request in kinds]
        for request, future in zip(kinds, asked, strict=True):
            found, alone = future.result(), local.generate("editor", **request)
            assert found.tensors.keys() == alone.tensors.keys()
            assert_same(found, alone)
            for name in PIXELS if request["format"] == "float" else ():
                sample = f"{name}.sample"
                np.testing.assert_array_equal(found.tensors[sample], alone.tensors[sample])


def test_a_long_stream_of_one_photo_or_of_many(client: Client, local: Client) -> None:
    most = 75  # a seed soon after gives NaN
    for photo in (photos(1)[0], photos(most)):
        given: dict[str, Any] = {"seeds": range(most), "photo": photo}
        whole = local.generate("editor", **given)
        assert_same(joined(client.stream("editor", **given)), whole)
        encoded = list(client.stream("editor", format="png", chunk_size=9, **given))
        assert [len(chunk) for chunk in encoded] == [*[9] * 8, 3]
        assert_same(joined(encoded), whole)


def test_latents_in_place_of_seeds_stream_too(client: Client) -> None:
    whole = client.generate("editor", seeds=range(20), photo=photos(20))
    by_z = joined(client.stream("editor", z=latents(*range(20)), photo=photos(20)))
    assert_same(by_z, whole)


def test_a_photo_may_be_a_file(client: Client, tmp_path: Path) -> None:
    photo = photos(1)[0]
    (tmp_path / "photo.png").write_bytes(encode_image(photo, Format.PNG))
    by_array = client.generate("editor", seeds=7, photo=photo)
    assert_same(client.generate("editor", seeds=7, photo=tmp_path / "photo.png"), by_array)


def find_breaking_seed() -> int:
    return next(seed for seed in range(10_000) if latents(seed)[0, 0] < -3.0)


def test_nan_in_an_output_beside_the_main_one_is_never_delivered(
    client: Client, server: RunningServer
) -> None:
    bad = find_breaking_seed()
    before = server.metric("latentry_invalid_outputs_total", "editor")
    with pytest.raises(InvalidOutput, match="NaN or infinity") as caught:
        client.generate("editor", seeds=[1, bad, 2], photo=photos(3))
    assert caught.value.seeds == (bad,)
    with pytest.raises(InvalidOutput, match=f"seeds \\[{bad}\\]"):
        list(client.stream("editor", seeds=[1, bad, 2], photo=photos(3)))
    with ThreadPoolExecutor(16) as pool:
        seeds = [bad if i == 20 else i for i in range(40)]
        asked = [
            pool.submit(client.generate, "editor", seeds=seed, photo=photos(1)) for seed in seeds
        ]
        failed = [i for i, future in enumerate(asked) if future.exception()]
    assert failed == [20]
    wait_until(lambda: server.metric("latentry_invalid_outputs_total", "editor") == before + 3)


# --- on the wire ---------------------------------------------------------------------------------


def test_anybody_may_choose_among_the_outputs(raw: InferenceServerClient, client: Client) -> None:
    inputs = [tensor("seed", np.arange(3)[:, None]), tensor("photo", photos(3))]
    whole = client.generate("editor", seeds=range(3), photo=photos(3))
    everything = raw.infer("editor", inputs)
    for name in OUTPUTS:
        np.testing.assert_array_equal(everything.as_numpy(name), whole[name])
    some = raw.infer(
        "editor", inputs, outputs=[InferRequestedOutput(name) for name in ("features", "alpha")]
    )
    assert {item.name for item in some.get_response().outputs} == {"features", "alpha"}
    np.testing.assert_array_equal(some.as_numpy("alpha"), whole["alpha"])
    text = tensor("format", np.full((3, 1), b"png", object))
    files = raw.infer("editor", [*inputs, text])
    for name, channels in (("image", 3), ("grey", 1), ("alpha", 1)):
        assert files.as_numpy(name) is None
        for data, row in zip(files.as_numpy(f"{name}.encoded"), whole[name], strict=True):
            np.testing.assert_array_equal(decode_image(data[0], channels).reshape(row.shape), row)


def test_raw_streams_take_pictures(server: RunningServer, client: Client) -> None:
    whole = client.generate("editor", seeds=range(5, 25), photo=photos(1)[0])
    answers: list[Any] = []
    with InferenceServerClient(server.url) as raw:
        raw.start_stream(lambda result, error: answers.append(error or result))
        inputs = {"seed": np.array([5]), "count": np.array([20]), "photo": photos(1)}
        raw.async_stream_infer("editor.stream", [tensor(*item) for item in inputs.items()])
        raw.stop_stream()
    chunks = [answer for answer in answers if answer.as_numpy("index") is not None]
    assert [int(chunk.as_numpy("index")[0]) for chunk in chunks] == [0, 8]
    found = joined({name: chunk.as_numpy(name) for name in OUTPUTS} for chunk in chunks)
    assert_same(found, whole)


@pytest.mark.parametrize(
    ("tensors", "match"),
    [
        ({"photo": photos(2)}, "seed is required, as it draws z; or give z itself"),
        ({"seed": np.arange(2)[:, None]}, "photo is required by this model; it takes pictures of"),
        ({"seed": np.arange(2)[:, None], "photo": photos(2)[:, 1:]}, "unexpected shape for input"),
        ({"seed": np.arange(2)[:, None], "photo": photos(2) / np.float32(255)}, "data-type"),
        ({"seed": np.arange(3)[:, None], "photo": photos(2)}, "batch size does not match"),
    ],
)
def test_bad_pictures_on_the_wire(
    raw: InferenceServerClient, tensors: dict[str, Any], match: str
) -> None:
    inputs = [tensor(name, array) for name, array in tensors.items()]
    with pytest.raises(InferenceServerException, match=re.escape(match)):
        raw.infer("editor", inputs)
    assert raw.is_server_ready()


@pytest.mark.parametrize(
    ("photo", "match"),
    [
        (photos(3)[:, :23], "photo has rows of shape"),
        (photos(2), "give one value for all, or one for each"),
        (photos(3) / 255, r"photo holds 0\.\d+, a float; it takes pictures of 24 x 20 x 3, uint8"),
        ("photo.png", "photo is a text; for a file give a pathlib"),
        (None, "photo is required by this model; it takes pictures of 24 x 20 x 3, uint8"),
    ],
)
def test_clients_refuse_bad_pictures_before_anything_travels(
    client: Client, photo: Any, match: str
) -> None:
    with pytest.raises(BadRequest, match=match):
        client.generate("editor", seeds=range(3), photo=photo)


@pytest.mark.skipif(find_perf_analyzer() is None, reason="no perf_analyzer on this machine")
def test_perf_analyzer_sends_pictures(server: RunningServer, edited: Path) -> None:
    tool = find_perf_analyzer()
    assert tool is not None
    path = edited / "editor" / "1" / "perf_input.json"
    assert '"b64"' in path.read_text()
    before = server.metric("latentry_samples_total", "editor")
    report = tool.run(
        *("-m", "editor", "-u", server.url, "-i", "grpc", "--concurrency-range", "4"),
        *("--request-count", "200", "-b", "2", "--input-data", str(path)),
    )
    assert "Throughput:" in report
    wait_until(lambda: server.metric("latentry_samples_total", "editor") >= before + 400)


# --- the canary ----------------------------------------------------------------------------------


@pytest.fixture
def own(edited: Path, tmp_path: Path) -> Entry:
    """Return an entry of a repository of its own, which may be damaged."""
    shutil.copytree(edited / "editor", tmp_path / "own" / "editor")
    (entry,) = newest_entries(tmp_path / "own")
    return entry


def changed(entry: Entry, output: str, change: float) -> Goldens:
    """Return the goldens of ``entry`` with one element of an output of the third changed."""
    goldens = read_goldens(entry)
    flat = goldens.outputs[output][2].reshape(-1)
    flat[0] += np.array(change).astype(flat.dtype)
    return goldens


@pytest.mark.parametrize(
    ("output", "change", "is_seen"),
    [("features", 1e-6, False), ("alpha", 1, True), ("grey", 1, True)],
)
def test_an_output_that_is_not_drawn_as_its_golden_is_named(
    own: Entry, tmp_path: Path, output: str, change: float, is_seen: bool
) -> None:
    rewrite_goldens(own, changed(own, output, change), own.build.goldens.engine_class)
    options = ["--repository", str(own.folder.parents[1]), "--port", "0", "--metrics-port", "0"]
    done = subprocess.run(
        [str(LATENTRY), "serve", *options],
        cwd=tmp_path, env={**os.environ, "COLUMNS": "1000"},
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert f"editor does not draw its goldens: {output} of golden 2 differs most" in done.stderr
    assert (tmp_path / "latentry-canary-editor.png").exists() is is_seen
    assert ("side by side" in done.stderr) is is_seen


def test_rounding_of_another_engine_class_is_served_with_a_warning(
    own: Entry, capfd: pytest.CaptureFixture[str]
) -> None:
    goldens = changed(own, "features", 1e-6)
    goldens.outputs["alpha"][1, 3, 3] ^= 1
    rewrite_goldens(own, goldens, "onnxruntime-0-fp32-none")
    with run_server(own.folder.parents[1]) as server, Client(server.url) as client:
        assert client.health()
    said = re.sub(r"\s+", " ", capfd.readouterr().err)
    assert "other engine class than its goldens" in said
