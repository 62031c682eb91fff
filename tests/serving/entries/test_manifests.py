"""What the JSON files of an entry say: digests, seals, formats."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stored.drafts import make

from latentry.contract.errors import EntryError
from latentry.serving.entries import manifests
from latentry.serving.entries.manifests import (
    BUILD_JSON,
    BUILDS,
    MODEL_JSON,
    RECORD_JSON,
    Model,
    ServingPart,
)
from latentry.serving.entries.publishing import (
    publish,
)
from latentry.serving.entries.repository import (
    Entry,
    newest_entries,
    read_entry,
)
from latentry.serving.entries.sealed import file_record
from latentry.serving.entries.verification import verify_entry


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "model_repository"


@pytest.fixture
def entry(repository: Path) -> Entry:
    return publish(repository, "model", make())[0]


def test_tuning_the_serving_part_changes_no_digest() -> None:
    build = make().build
    tuned = build.model_copy(update={"serving": ServingPart(instances=7)})
    assert tuned.digest == build.digest


def test_the_model_digest_is_what_sha256sum_prints(entry: Entry) -> None:
    text = (entry.folder / MODEL_JSON).read_bytes()
    assert entry.digest == hashlib.sha256(text).hexdigest()
    assert json.loads(text)["networks"]["generator.onnx"]["size"] == len(b"weights")


def test_a_digest_is_of_the_stored_text_and_not_of_todays_classes(
    entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Later(Model):
        license: str = "none"

    monkeypatch.setattr(manifests, "Model", Later)
    later = read_entry(entry.folder)
    assert later.model.content.license == "none"  # type: ignore[attr-defined]
    assert later.digest == entry.digest
    verify_entry(later)


def test_the_build_digest_is_of_a_few_lines_that_anybody_can_write(entry: Entry) -> None:
    lines = (
        f"model {entry.digest}\nengine onnxruntime\nprecision fp32\nrows batch\n"
        f"{hashlib.sha256(b'weights').hexdigest()}  generator.onnx\n"
    )
    assert entry.build.digest == hashlib.sha256(lines.encode()).hexdigest()


@pytest.mark.parametrize(
    "change",
    [
        {"engine": "other"},
        {"precision": "int8"},
        {"rows": "single"},
        {"model": "0" * 64},
        {"artefacts": {"generator.onnx": file_record(b"other")}},
    ],
)
def test_all_on_which_a_bit_depends_is_in_the_build_digest(change: dict[str, Any]) -> None:
    build = make().build
    assert build.model_copy(update=change).digest != build.digest


JSON_FILES = (MODEL_JSON, RECORD_JSON, BUILD_JSON)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(st.data())
def test_one_flipped_bit_anywhere_is_found(entry: Entry, data: st.DataObject) -> None:
    files = sorted(path for path in entry.folder.rglob("*") if path.is_file())
    path = data.draw(st.sampled_from(files))
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    bad = bytearray(good)
    bad[place] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bad)
    try:
        with pytest.raises(EntryError) as caught:
            verify_entry(read_entry(entry.folder))
        assert path.name in str(caught.value)
        if path.name not in JSON_FILES:
            assert hashlib.sha256(bad).hexdigest() in str(caught.value)
            assert hashlib.sha256(good).hexdigest() in str(caught.value)
        elif path.name != MODEL_JSON:
            assert f"{path} was changed: its SHA-256 is" in str(caught.value)
    finally:
        path.write_bytes(good)


def test_missing_and_extra_files_are_named(entry: Entry) -> None:
    (entry.build_folder / "generator.onnx").unlink()
    for number, folder in enumerate((entry.folder, entry.folder / BUILDS, entry.build_folder)):
        (folder / f"evil{number}.so").write_bytes(b"")
    with pytest.raises(EntryError) as caught:
        verify_entry(entry)
    first, *others, _ = str(caught.value).splitlines()
    assert first == f"{entry.build_folder / 'generator.onnx'} is missing"
    assert [line.split(" does not belong")[0].rpartition("/")[2] for line in others] == [
        *("evil0.so", "evil1.so", "evil2.so"),
    ]


@pytest.mark.parametrize("name", JSON_FILES)
def test_a_file_of_another_format_is_refused(entry: Entry, name: str) -> None:
    path = (entry.build_folder if name == BUILD_JSON else entry.folder) / name
    text = path.read_bytes().replace(b'"format": 3', b'"format": 9')
    head = text.rpartition(b',\n  "sha256"')[0]
    if name != MODEL_JSON:
        text = head + b',\n  "sha256": "' + hashlib.sha256(head).hexdigest().encode() + b'"\n}\n'
    path.write_bytes(text)
    with pytest.raises(EntryError, match="format: Input should be 3, of another version; export"):
        read_entry(entry.folder)


def test_an_entry_of_before_says_that_it_is_one(repository: Path, entry: Entry) -> None:
    old = repository / "old" / "1"
    old.mkdir(parents=True)
    (old / "latentry.json").write_text('{"format": 2}')
    with pytest.raises(EntryError, match="was made by Latentry 0.4 or before .* export old again"):
        newest_entries(repository, ("old",))
    again, is_new = publish(repository, "old", make())
    assert (again.version, is_new) == (2, True)


def test_files_of_another_version_do_not_fit(repository: Path, entry: Entry) -> None:
    other, _ = publish(repository, "model", make(b"other"))
    shutil.copy(other.folder / RECORD_JSON, entry.folder)
    with pytest.raises(EntryError, match="belongs to another version: its SHA-256 is"):
        read_entry(entry.folder)
