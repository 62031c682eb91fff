import hashlib
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jobs.judging import HOOKS, OPTIONS, Digits, Write, candidates_of, load, part_of

from latentry.contract.errors import BadRequest, NotFound
from latentry.synthesis.filters.filters import file_hashes


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.integers(0, 100), max_size=6), st.sampled_from(["plain", "probabilities"]))
def test_verdicts_do_not_depend_on_how_a_batch_is_cut(
    digits: Digits, write: Write, cuts: list[int], name: str
) -> None:
    images = digits[0][1200:1300].copy()
    images[50:60] = images[:10]
    images[70] = 7
    batch = candidates_of(images, digits[1][1200:1300])
    file = write(name, outputs=("logits" if name == "plain" else name,))
    kinds: list[dict[str, Any]] = [
        {"kind": "constant"},
        {"kind": "duplicates"},
        {"kind": "classifier", "file": file, "scale": "zero_to_one", "min_probability": 0.8},
    ]
    for options in kinds:
        whole, cut = load(**options), load(**options)
        parts = [slice(*pair) for pair in pairwise([0, *sorted(cuts), 100])]
        found = [
            v for part in parts if part.start < part.stop for v in cut.judge(part_of(batch, part))
        ]
        batch.seen.clear()
        assert found == whole.judge(batch)
        batch.seen.clear()


def test_the_files_on_which_verdicts_depend_are_hashed(hooks: str, write: Write) -> None:
    classifier = OPTIONS.validate_python({"kind": "classifier", "file": write("plain")})
    function = OPTIONS.validate_python({"kind": "python", "function": f"{hooks}:dark"})
    constant = OPTIONS.validate_python({"kind": "constant"})
    hashes = file_hashes([classifier, function, constant, classifier])
    assert hashes == {
        "plain.onnx": hashlib.sha256(write("plain").read_bytes()).hexdigest(),
        f"{hooks}.py": hashlib.sha256(HOOKS.encode()).hexdigest(),
    }


def test_two_files_of_one_name_are_refused(tmp_path: Path, write: Write) -> None:
    (tmp_path / "plain.onnx").write_bytes(b"another")
    options = [
        OPTIONS.validate_python({"kind": "classifier", "file": file})
        for file in (write("plain"), tmp_path / "plain.onnx")
    ]
    with pytest.raises(BadRequest, match="told apart by their names, rename one: .*plain.onnx"):
        file_hashes(options)


def test_where_a_file_lies_is_not_part_of_a_job(write: Write) -> None:
    options = OPTIONS.validate_python({"kind": "classifier", "file": write("plain")})
    assert '"file":"plain.onnx"' in options.model_dump_json()


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.onnx"
    path.touch()
    gone = OPTIONS.validate_python({"kind": "classifier", "file": path})
    path.unlink()
    with pytest.raises(NotFound, match=r"gone\.onnx cannot be read: No such file or directory"):
        file_hashes([gone])
