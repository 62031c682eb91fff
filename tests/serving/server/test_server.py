"""What a real Triton answers, to Latentry's clients and to anybody else's."""

import asyncio
import re
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from running_server import RunningServer, run_server, wait_until
from tritonclient.grpc import InferenceServerClient, InferInput
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

from latentry.clients import AsyncClient, BadRequest, Client, InvalidOutput, NotFound
from latentry.contract.images import uint8_from_sample
from latentry.contract.kinds.latent import LatentInput
from latentry.contract.seeds import LatentDrawer
from latentry.contract.spec import GeneratorSpec
from latentry.contract.stages.truncate import TruncateStage
from latentry.profiling.perf_analyzer.program import find_perf_analyzer
from latentry.serving.entries.repository import newest_entries
from latentry.serving.runtime.local import LocalTransport

pytestmark = pytest.mark.server

MODELS = ["digits", "textures", "wide", "mapped"]


@pytest.fixture(scope="module")
def client(triton: RunningServer) -> Iterator[Client]:
    with Client(triton.url) as client:
        yield client


@pytest.fixture(scope="module")
def local(repository: Path) -> Iterator[Client]:
    with Client(transport=LocalTransport(repository, threads=1)) as client:
        yield client


@pytest.fixture(scope="module")
def raw(triton: RunningServer) -> Iterator[InferenceServerClient]:
    with InferenceServerClient(triton.url) as raw:
        yield raw


def tensor(name: str, array: Any) -> InferInput:
    array = np.asarray(array)
    made = InferInput(name, list(array.shape), np_to_triton_dtype(array.dtype))
    made.set_data_from_numpy(array)
    return made


def column(*values: int) -> np.ndarray[Any, Any]:
    return np.array(values, np.int64)[:, None]


def controls_for(model: str, count: int) -> dict[str, Any]:
    labels = {"digits": 10, "mapped": 4}
    controls: dict[str, Any] = {}
    if model in labels:
        controls["class_label"] = [i % labels[model] for i in range(count)]
    if model == "mapped":
        controls["truncation_psi"] = [1.0 - 0.05 * i for i in range(count)]
    return controls


@pytest.mark.parametrize("model", MODELS)
def test_a_seed_draws_the_same_image_whatever_carries_it(
    client: Client, local: Client, triton: RunningServer, model: str
) -> None:
    most = client.info(model).max_batch_size
    controls = controls_for(model, most)
    whole = client.generate(model, seeds=range(most), **controls).images

    def part(start: int, stop: int) -> dict[str, Any]:
        picked = {name: values[start:stop] for name, values in controls.items()}
        return {"seeds": range(start, min(stop, most)), **picked}

    async def in_asyncio() -> tuple[Any, list[Any]]:
        async with AsyncClient(triton.url) as asynchronous:
            result = await asynchronous.generate(model, **part(0, most))
            chunks = [c.images async for c in asynchronous.stream(model, **part(0, most))]
            return result.images, chunks

    single = [client.generate(model, **part(i, i + 1)).images for i in range(most)]
    sevens = [client.generate(model, **part(i, i + 7)).images for i in range(0, most, 7)]
    chunks = [chunk.images for chunk in client.stream(model, **part(0, most))]
    fives = [chunk.images for chunk in client.stream(model, chunk_size=5, **part(0, most))]
    asynchronous, asynchronous_chunks = asyncio.run(in_asyncio())
    for images in (single, sevens, chunks, fives, asynchronous_chunks):
        np.testing.assert_array_equal(np.concatenate(images), whole)
    np.testing.assert_array_equal(asynchronous, whole)
    np.testing.assert_array_equal(local.generate(model, **part(0, most)).images, whole)
    assert len({image.tobytes() for image in whole}) == most


def test_results_say_what_drew_them(client: Client, repository: Path) -> None:
    (entry,) = newest_entries(repository, ("digits",))
    result = client.generate("digits", seeds=[5], class_label=3)
    assert result.model_digest == entry.digest
    assert result.engine_class == entry.build.goldens.engine_class
    assert result.version == "1"
    assert client.models() == sorted(["breaking", "large", *MODELS])


def test_more_than_a_batch_comes_back_in_order(client: Client) -> None:
    seeds = [7, 3, 3, *range(100, 300)]
    images = client.generate("wide", seeds=seeds).images
    assert len(images) == len(seeds)
    np.testing.assert_array_equal(images[1], images[2])
    for place in (0, 50, 202):
        np.testing.assert_array_equal(
            images[place], client.generate("wide", seeds=seeds[place]).images[0]
        )


def test_32_images_of_256_by_256_in_one_answer(raw: InferenceServerClient, local: Client) -> None:
    images = raw.infer("large", [tensor("seed", column(*range(32)))]).as_numpy("image")
    assert images.shape == (32, 256, 256, 3)
    np.testing.assert_array_equal(images, local.generate("large", seeds=range(32)).images)


def test_seeds_latents_and_truncation_fit_together(client: Client) -> None:
    spec = client.info("mapped").spec
    z = LatentDrawer(latent(spec)).draw(range(4))
    by_seed = client.generate("mapped", seeds=range(4), class_label=2).images
    by_z = client.generate("mapped", z=z, class_label=2).images
    np.testing.assert_array_equal(by_seed, by_z)
    (w_avg,) = [stage.w_avg for stage in spec.pipeline if isinstance(stage, TruncateStage)]
    assert w_avg is not None
    average = client.generate(
        "mapped", w=np.broadcast_to(np.array(w_avg, np.float32), (1, 3, 20))
    ).images[0]
    collapsed = client.generate("mapped", seeds=range(4), class_label=2, truncation_psi=0.0).images
    for image in collapsed:
        np.testing.assert_array_equal(image, average)
    assert (by_seed != collapsed).any()


def test_formats(client: Client) -> None:
    raw_ = client.generate("wide", seeds=range(3))
    floats = client.generate("wide", seeds=range(3), format="float")
    assert floats.samples is not None
    np.testing.assert_array_equal(floats.images, raw_.images)
    np.testing.assert_array_equal(uint8_from_sample(floats.samples), raw_.images)
    for name, head in (("png", b"\x89PNG"), ("webp", b"RIFF"), ("jpeg", b"\xff\xd8")):
        files = client.generate("wide", seeds=range(3), format=name)
        assert files.encoded is not None
        assert all(data.startswith(head) for data in files.encoded)
        allowed = 60 if name == "jpeg" else 0
        difference = np.abs(files.images.astype(int) - raw_.images.astype(int))
        assert difference.max() <= allowed
    grey = client.generate("digits", seeds=[1], class_label=1)
    for name in ("png", "webp"):
        files = client.generate("digits", seeds=[1], class_label=1, format=name)
        np.testing.assert_array_equal(files.images, grey.images)


def latent(spec: GeneratorSpec) -> LatentInput:
    item = spec.input_of("z", LatentInput)
    assert item is not None
    return item


def find_breaking_seed(client: Client) -> int:
    drawer = LatentDrawer(latent(client.info("breaking").spec))
    return next(seed for seed in range(100, 10_000) if drawer.draw([seed])[0, 0] < -3.0)


def test_nan_fails_its_own_request_only(client: Client, triton: RunningServer) -> None:
    bad = find_breaking_seed(client)
    before = triton.metric("latentry_invalid_outputs_total", "breaking")
    with pytest.raises(InvalidOutput, match="NaN or infinity") as caught:
        client.generate("breaking", seeds=[1, bad, 2])
    assert caught.value.seeds == (bad,)
    with pytest.raises(InvalidOutput, match=f"seeds \\[{bad}\\]"):
        list(client.stream("breaking", seeds=[1, bad, 2]))
    with ThreadPoolExecutor(16) as pool:
        seeds = [bad if i == 20 else i for i in range(40)]
        asked = [pool.submit(client.generate, "breaking", seeds=seed) for seed in seeds]
        failed = [i for i, future in enumerate(asked) if future.exception()]
    assert failed == [20]
    wait_until(lambda: triton.metric("latentry_invalid_outputs_total", "breaking") == before + 3)


def test_metrics_count_samples_and_seconds(client: Client, triton: RunningServer) -> None:
    before = triton.metric("latentry_samples_total", "textures")
    seconds = triton.metric("latentry_seconds_total", "textures")
    client.generate("textures", seeds=range(10), format="png")
    wait_until(lambda: triton.metric("latentry_samples_total", "textures") >= before + 10)
    wait_until(lambda: triton.metric("latentry_seconds_total", "textures") > seconds)


@pytest.mark.parametrize(
    ("model", "tensors", "match"),
    [
        ("digits", {"seed": column(-1), "class_label": column(0)}, "seed in row 0 is -1; a seed"),
        ("digits", {"seed": column(2**32), "class_label": column(0)}, "seed in row 0 is 4294967"),
        ("digits", {"seed": column(1)}, "class_label is required by this model; it takes an int"),
        ("digits", {"seed": column(1, 2), "class_label": column(3, 10)}, "row 1 is 10; it takes"),
        ("textures", {"seed": column(1), "class_label": column(0)}, "class_label"),
        (
            "textures",
            {"seed": column(1), "z": np.zeros((1, 64), np.float32)},
            "seed and z were given; nothing is left for seed to draw",
        ),
        ("textures", {"z": np.full((1, 64), np.nan, np.float32)}, "z in row 0 is nan"),
        ("textures", {"z": np.zeros((1, 63), np.float32)}, "unexpected shape for input 'z'"),
        ("textures", {"seed": column(1), "truncation_psi": [[np.float32(1)]]}, "truncation_psi"),
        (
            "mapped",
            {
                "seed": column(1),
                "class_label": column(1),
                "truncation_psi": np.full((1, 1), np.nan, np.float32),
            },
            "truncation_psi in row 0 is nan; it takes a number from -2 to 2",
        ),
        ("textures", {"seed": column(1), "format": np.array([[b"gif"]], object)}, "'gif' is unkn"),
        ("textures", {"seed": np.zeros((0, 1), np.int64)}, "Expected 8, got 0"),
        ("textures", {"seed": column(*range(100_000))}, "batch-size must be <= 32"),
        ("textures", {"seed": np.zeros((1, 1), np.float32)}, "data-type"),
        ("nobody", {"seed": column(1)}, "unknown model: 'nobody' is not found"),
    ],
)
def test_bad_requests_on_the_wire(
    raw: InferenceServerClient, model: str, tensors: dict[str, Any], match: str
) -> None:
    inputs = [tensor(name, array) for name, array in tensors.items()]
    with pytest.raises(InferenceServerException, match=re.escape(match)):
        raw.infer(model, inputs)
    assert raw.is_server_ready()


@pytest.mark.parametrize(
    ("model", "tensors", "match"),
    [
        ("nobody.stream", {"seed": np.array([1])}, "unknown model: 'nobody.stream' is not found"),
        ("../up.stream", {"seed": np.array([1])}, "unknown model: '../up.stream' is not found"),
        ("wide.stream", {}, "carries no tensors; send at least seed"),
        (
            "wide.stream",
            {"model": np.array([b"wide"], object), "seed": np.array([0])},
            "unexpected inference input 'model' for model 'wide.stream'",
        ),
        (
            "wide.stream",
            {"seed": np.array([0]), "count": np.array([0])},
            "asks for 0 samples",
        ),
        (
            "wide.stream",
            {"seed": np.array([0]), "count": np.array([9999])},
            "one request takes 1 to 728 of this model",
        ),
        (
            "mapped.stream",
            {"seed": np.array([0]), "class_label": column(4)},
            "class_label in row 0 is 4; it takes an integer from 0 to 3: 0=cat",
        ),
    ],
)
def test_bad_streams_on_the_wire(
    triton: RunningServer, model: str, tensors: Any, match: str
) -> None:
    answers: list[Any] = []
    with InferenceServerClient(triton.url) as raw:
        raw.start_stream(lambda result, error: answers.append(error or result))
        inputs = [tensor(name, array) for name, array in tensors.items()]
        raw.async_stream_infer(model, inputs)
        raw.stop_stream()
    assert match in str(answers[0])


def test_clients_refuse_before_anything_travels(client: Client) -> None:
    with pytest.raises(NotFound, match="'nobody' is not being served; these are: breaking, digits"):
        client.generate("nobody", seeds=1)
    with pytest.raises(BadRequest, match="takes no class_label; it takes seed, z, format"):
        client.generate("textures", seeds=1, class_label=1)
    with pytest.raises(BadRequest, match=r"GiB; one result holds up to 1 GiB\. Use stream"):
        client.generate("large", seeds=range(10_000))


def test_closing_a_stream_stops_the_work(client: Client, triton: RunningServer) -> None:
    stream = client.stream("textures", seeds=range(1_000_000))
    next(stream)
    stream.close()

    def drawn_within_a_second() -> float:
        before = triton.metric("latentry_samples_total", "textures")
        time.sleep(1.0)
        return triton.metric("latentry_samples_total", "textures") - before

    # The server's own canary may have drawn one meanwhile; the stream would have drawn hundreds.
    wait_until(lambda: drawn_within_a_second() <= 2)


def test_a_reader_that_stops_costs_the_server_no_more_than_one_request(
    client: Client, triton: RunningServer
) -> None:
    process = psutil.Process(triton.triton_pid())
    client.generate("large", seeds=range(32))
    before = process.memory_info().rss
    stream = client.stream("large", seeds=range(5_000))  # 940 MiB in all
    next(stream)
    time.sleep(4.0)
    held = process.memory_info().rss - before
    stream.close()
    assert held < 200 * 2**20
    assert client.health()


def test_the_process_of_streams_loads_neither_an_engine_nor_an_encoder(
    client: Client, triton: RunningServer
) -> None:
    assert len(list(client.stream("wide", seeds=range(4), format="jpeg", chunk_size=2))) == 2

    def loaded(model: str) -> set[str]:
        pid = triton.stub_pids_of(model)[0]
        files = {Path(part.path) for part in psutil.Process(pid).memory_maps()}
        return {part for path in files for part in path.parts} & {"onnxruntime", "PIL"}

    assert "onnxruntime" in loaded("wide")
    assert loaded("wide.stream") == set()


def test_mixed_controls_share_batches(repository: Path) -> None:
    # A batch waits a second for more requests, so that it holds all that come meanwhile.
    options = ("--models", "digits", "--instances", "1", "--queue-delay-us", "1000000")
    with run_server(repository, *options) as server, Client(server.url) as client:
        client.info("digits")
        with InferenceServerClient(server.url) as raw, ThreadPoolExecutor(32) as pool:

            def counts() -> NDArray[np.int64]:
                stats = raw.get_inference_statistics("digits", as_json=True)["model_stats"][0]
                return np.array([int(stats["inference_count"]), int(stats["execution_count"])])

            before = counts()
            asked = [
                pool.submit(client.generate, "digits", seeds=seed, class_label=seed % 10)
                for seed in range(32)
            ]
            assert [len(future.result()) for future in asked] == [1] * 32
            requests, executions = counts() - before
    assert requests >= 32
    assert executions <= 6


@pytest.mark.skipif(find_perf_analyzer() is None, reason="no perf_analyzer on this machine")
@pytest.mark.parametrize("model", ["digits", "mapped"])
def test_perf_analyzer_runs_on_what_the_entry_brings(
    triton: RunningServer, repository: Path, model: str
) -> None:
    tool = find_perf_analyzer()
    assert tool is not None
    (entry,) = newest_entries(repository, (model,))
    report = tool.run(
        *("-m", model, "-u", triton.url, "-i", "grpc", "--concurrency-range", "4"),
        *("--request-count", "200", "--input-data", str(entry.folder / "perf_input.json")),
    )
    assert "Throughput:" in report
    assert "Request concurrency: 4" in report
