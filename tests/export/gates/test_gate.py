"""What is as good as FP32 passes the gate; what is broken on purpose does not."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from exporting.painters import CLASSES, SPEC, Change, Painter, Samples

from latentry.contract.errors import BadRequest, ExportRefused
from latentry.contract.wire import Arrays
from latentry.export.gates.bounds import BOUNDS, bounds_of
from latentry.export.gates.gate import LEAST_SAMPLES, GateFinding, refuse, run_gate
from latentry.export.gates.report import report_bytes
from latentry.export.gates.samples import PairedSamples
from latentry.export.proofs.build_proof import prove_build

PAGE = Path("quality.html")


def judge(
    engine: Painter, precision: str = "int8", *, least: int = 1000, **how: Any
) -> GateFinding:
    bounds = bounds_of(precision, how.pop("bounds", {}))
    assert bounds is not None
    samples = PairedSamples(SPEC, {"generator": Painter()}, {"generator": engine}, 64, {})
    return run_gate(SPEC, samples, bounds, least=least, **how)


def noise(deviation: float) -> Change:
    """Return noise that depends on the sample alone."""

    def change(sample: Samples, _: Arrays) -> Samples:
        rows = [
            row + deviation * np.random.RandomState(int(abs(row[0, 0, 0]) * 1e6)).randn(*row.shape)
            for row in sample
        ]
        noisy: Samples = np.clip(np.stack(rows), -1, 1).astype(np.float32)
        return noisy

    return change


def in_half_precision(sample: Samples, _: Arrays) -> Samples:
    halves: Samples = sample.astype(np.float16).astype(np.float32)
    return halves


def a_layer_zeroed(sample: Samples, _: Arrays) -> Samples:
    return sample * np.array([1, 0, 1], np.float32)[:, None, None]


def channels_swapped(sample: Samples, _: Arrays) -> Samples:
    return sample[:, ::-1]


def overflowing(sample: Samples, _: Arrays) -> Samples:
    with np.errstate(over="ignore", invalid="ignore"):
        large = (sample * np.float32(70_000)).astype(np.float16)
    return large.astype(np.float32) / np.float32(70_000)


def constant(sample: Samples, _: Arrays) -> Samples:
    return np.zeros_like(sample)


def lighter_at_the_edge(sample: Samples, _: Arrays) -> Samples:
    lighter = sample.copy()
    lighter[:, :, -7:, -7:] += np.float32(0.4)
    return np.clip(lighter, -1, 1)


def less_contrast(sample: Samples, _: Arrays) -> Samples:
    return sample * np.float32(0.96)


def one_class_replaced(sample: Samples, rows: Arrays) -> Samples:
    label = rows["class_label"].reshape(-1)
    other = Painter().run(
        {**rows, "class_label": np.full_like(label, 1)[:, None]}, ["image.sample"]
    )
    replaced: Samples = np.where(
        (label == CLASSES - 1)[:, None, None, None], other["image.sample"], sample
    )
    return replaced


def calibrated_on_something_else(sample: Samples, _: Arrays) -> Samples:
    narrow: Samples = (np.rint(np.clip(sample, -0.3, 0.3) * 127 / 0.3) * 0.3 / 127).astype(
        np.float32
    )
    return narrow


def one_in_five_hundred_destroyed(sample: Samples, rows: Arrays) -> Samples:
    is_bad = (np.abs(rows["z"][:, 0] * 1e4).astype(np.int64) % 500) == 0
    return np.where(is_bad[:, None, None, None], -sample, sample)


@pytest.mark.parametrize(
    ("engine", "precision"),
    [(Painter(), "fp16"), (Painter(in_half_precision), "fp16"), (Painter(noise(0.02)), "int8")],
)
def test_what_is_as_good_passes(engine: Painter, precision: str) -> None:
    finding = judge(engine, precision, least=LEAST_SAMPLES)
    assert finding.faults == ()
    assert finding.gate.samples == len(finding.psnr_db) == LEAST_SAMPLES
    assert finding.gate.found.keys() >= finding.gate.bounds.keys() == BOUNDS[precision].keys()
    refuse("painter-int8", finding, PAGE)


@pytest.mark.parametrize(
    ("change", "figure"),
    [
        (a_layer_zeroed, "worst_psnr_db"),
        (channels_swapped, "worst_psnr_db"),
        (one_class_replaced, "worst_psnr_db"),
        (calibrated_on_something_else, "worst_psnr_db"),
        (noise(0.09), "below_30_db"),
        (lighter_at_the_edge, "worst_patch_levels"),
        (less_contrast, "frechet"),
    ],
)
def test_what_is_broken_is_refused(change: Change, figure: str) -> None:
    finding = judge(Painter(change))
    assert f"{figure} is " in " ".join(finding.faults)
    with pytest.raises(ExportRefused, match=f"{figure} is .* Nothing was added"):
        refuse("painter-int8", finding, PAGE)


def test_what_destroys_few_is_found_among_the_worst() -> None:
    finding = judge(Painter(one_in_five_hundred_destroyed), least=LEAST_SAMPLES)
    assert 0 < finding.gate.found["below_30_db"] < 0.005
    assert finding.gate.found["median_psnr_db"] == 150
    assert finding.faults[0].startswith("worst_psnr_db is ")
    worst = finding.worst[0]
    assert worst.psnr_db == finding.psnr_db.min() == finding.psnr_db[worst.index]
    assert [one.index for one in finding.first] == list(range(8))


def test_infinity_of_half_precision_is_refused() -> None:
    with pytest.raises(ExportRefused, match=r"image.sample\[.* not finite"):
        judge(Painter(overflowing), "fp16")


def test_a_picture_of_one_value_is_refused() -> None:
    with pytest.raises(ExportRefused, match="image of sample 0 is of one value throughout"):
        judge(Painter(constant))


def test_few_samples_have_no_frechet_distance() -> None:
    assert "frechet" in judge(Painter(), least=100).gate.found
    assert "frechet" not in judge(Painter(), least=99).gate.found


@pytest.mark.parametrize("level", [1, -1])
def test_a_level_everywhere_is_a_bias(level: int) -> None:
    (fault,) = judge(Painter(level=level), "fp16").faults
    assert fault.startswith("bias_levels is 0.9")


def test_rows_that_change_places_are_refused() -> None:
    def exchanged(sample: Samples, _: Arrays) -> Samples:
        return sample[[1, 0, *range(2, len(sample))]] if len(sample) > 1 else sample

    engines = {"generator": Painter(exchanged)}
    with pytest.raises(ExportRefused, match="a seed must give the same image in every batch"):
        prove_build(SPEC, {"generator": Painter()}, lambda *_: engines, 4, is_exact=False)


def test_a_distance_is_measured_until_it_is_decided() -> None:
    asked: list[int] = []
    engine = Painter(noise(0.02))
    bound = judge(engine, least=500).gate.found["frechet_mean"]  # which its interval holds
    finding = judge(engine, bounds={"frechet": bound}, least=500, progress=asked.append)
    assert finding.gate.samples >= 1000
    assert asked[-1] == finding.gate.samples


@pytest.mark.parametrize(
    ("precision", "given", "words"),
    [
        ("int8", {"worst": 3.0}, "no bound 'worst'; worst_psnr_db, below_30_db"),
        ("fp32", {"worst_psnr_db": 3.0}, "fp32 has none"),
    ],
)
def test_bounds_are_known_by_name(precision: str, given: Mapping[str, float], words: str) -> None:
    with pytest.raises(BadRequest, match=words):
        bounds_of(precision, given)
    assert bounds_of("fp32", {}) is None


def test_a_bound_is_moved_by_name() -> None:
    bounds = {"worst_psnr_db": 1.0}
    finding = judge(Painter(one_in_five_hundred_destroyed), bounds=bounds)
    assert finding.gate.bounds["worst_psnr_db"] == 1
    assert not any(fault.startswith("worst_psnr_db") for fault in finding.faults)


def test_the_page_shows_what_was_seen() -> None:
    page = report_bytes("<b>toy", "openvino-int8", judge(Painter(channels_swapped))).decode()
    assert "&lt;b&gt;toy" in page
    assert "It does not pass" in page
    assert page.count("<img ") == 32  # the first eight and the worst eight, by both
    assert "worst_psnr_db" in page
