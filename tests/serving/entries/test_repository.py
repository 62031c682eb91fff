import errno
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from specs import image, make_spec, z
from stored.drafts import PARITY, make

from latentry.contract.errors import BadRequest, EntryError, NotFound, OutOfSpace
from latentry.contract.files import write_new
from latentry.serving.entries import publishing
from latentry.serving.entries.manifests import (
    BUILD_JSON,
    BUILDS,
    FP32,
    MODEL_JSON,
    ServingPart,
)
from latentry.serving.entries.publishing import (
    publish,
    remove_entry,
    temporary_folder,
    write_config,
)
from latentry.serving.entries.repository import (
    Entry,
    list_entries,
    list_strays,
    newest_entries,
)
from latentry.serving.entries.tuning import tune_entry, with_serving
from latentry.serving.entries.verification import verify_entry


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    return tmp_path / "model_repository"


@pytest.fixture
def entry(repository: Path) -> Entry:
    return publish(repository, "model", make())[0]


def test_publishing_writes_one_whole_version(repository: Path, entry: Entry) -> None:
    assert entry.folder == repository / "model" / "1"
    verify_entry(entry)
    assert newest_entries(repository) == [entry]
    assert list(repository.parent.iterdir()) == [repository]
    assert 'name: "model"' in (repository / "model" / "config.pbtxt").read_text()


def test_a_digest_that_is_not_the_newest_is_published_again(repository: Path, entry: Entry) -> None:
    publish(repository, "model", make(b"other"))
    again, is_new = publish(repository, "model", make())
    assert (again.version, is_new) == (3, True)
    assert again.digest == entry.digest


def test_the_same_digest_again_writes_nothing(repository: Path, entry: Entry) -> None:
    before = {path: path.stat().st_mtime_ns for path in repository.rglob("*")}
    again, is_new = publish(repository, "model", make())
    assert (again, is_new) == (entry, False)
    assert {path: path.stat().st_mtime_ns for path in repository.rglob("*")} == before


def test_another_digest_becomes_the_next_version(repository: Path, entry: Entry) -> None:
    newer, is_new = publish(repository, "model", make(b"other"))
    assert (newer.version, is_new) == (2, True)
    assert newest_entries(repository) == [newer]
    assert newer.digest in (repository / "model" / "config.pbtxt").read_text()


MASK = {"name": "alpha", "kind": "mask", "height": 2, "width": 2}
OTHERS = {
    "a latent of another shape": make_spec([z(5)], [image(2, 2, 1)]),
    "another input": make_spec([z(4), {**MASK, "name": "given"}], [image(2, 2, 1)]),
    "another output": make_spec([z(4)], [image(2, 2, 1), MASK]),
    "a picture of another size": make_spec([z(4)], [image(2, 3, 1)]),
    "another name": make_spec([z(4)], [{**image(2, 2, 1), "name": "picture"}]),
    "another type": make_spec([{"name": "z", "kind": "vector", "size": 4}], [image(2, 2, 1)]),
    "no seed": make_spec([z(4, distribution="none")], [image(2, 2, 1)]),
}


@pytest.mark.parametrize("name", OTHERS)
def test_other_tensors_need_another_name(repository: Path, entry: Entry, name: str) -> None:
    with pytest.raises(EntryError, match="all versions of a name have the same tensors; model has"):
        publish(repository, "model", make(b"other", OTHERS[name]))
    assert [folder.name for folder in (repository / "model").iterdir() if folder.is_dir()] == ["1"]


SAME = {
    "another range": make_spec([z(4)], [image(2, 2, 1, range=[0.0, 1.0])]),
    "another distribution": make_spec([z(4, distribution="uniform")], [image(2, 2, 1)]),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_tensors_of_another_spec_are_a_new_version(
    repository: Path, entry: Entry, name: str
) -> None:
    newer, is_new = publish(repository, "model", make(spec=SAME[name]))
    assert (newer.version, is_new) == (2, True)
    assert newer.digest != entry.digest


def test_a_failed_write_leaves_nothing(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draft = make()
    draft.build_files["z"] = 7  # type: ignore[index]
    with pytest.raises(TypeError, match="bytes-like"):
        publish(repository, "model", draft)
    assert list(repository.parent.rglob("*")) == [repository]


@pytest.mark.parametrize(
    ("number", "expected", "words"),
    [
        (errno.ENOSPC, OutOfSpace, r"no space left for {}: it takes 7 bytes and [\d,]+ are free, "),
        (errno.EDQUOT, OutOfSpace, "your disk quota has no room for {}, 7 bytes; nothing was publ"),
        (errno.EIO, OSError, "Input/output error: '{}'"),
    ],
)
def test_a_disk_that_takes_no_more_is_told_by_the_file(
    repository: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: type[Exception],
    words: str,
) -> None:
    def write_half(path: Path, data: bytes) -> None:
        if path.name == "generator.onnx":
            raise OSError(number, os.strerror(number))
        write_new(path, data)

    monkeypatch.setattr(publishing, "write_new", write_half)
    file = repository / "model" / "1" / BUILDS / FP32 / "generator.onnx"
    with pytest.raises(expected, match=words.format(file)) as refused:
        publish(repository, "model", make())
    assert ("nothing was published; free some" in str(refused.value)) == (expected is OutOfSpace)
    assert list(repository.parent.rglob("*")) == [repository]


def test_a_half_written_entry_is_named_and_the_others_are_listed(
    repository: Path, entry: Entry
) -> None:
    publish(repository, "other", make())
    half = repository / "other" / "2"
    half.mkdir()
    (half / MODEL_JSON).write_bytes(entry.model.text)
    entries, errors = list_entries(repository)
    assert [(e.name, e.version) for e in entries] == [("model", 1), ("other", 1)]
    assert list(errors) == [half]
    with pytest.raises(EntryError, match=r"other/2/record\.json cannot be read .*half-written"):
        newest_entries(repository)
    assert newest_entries(repository, ("model",)) == [entry]


def test_models_of_somebody_else_are_left_alone(repository: Path, entry: Entry) -> None:
    native = repository / "native" / "1"
    native.mkdir(parents=True)
    (native / "model.plan").write_bytes(b"")
    assert list_strays(repository) == [native.parent]
    assert newest_entries(repository) == [entry]


def test_concurrent_publishers_take_turns(repository: Path) -> None:
    contents = [bytes([65 + i]) for i in range(6)]
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(publish, repository, "model", make(data)) for data in contents]
        versions = sorted(future.result()[0].version for future in asked)
    assert versions == [1, 2, 3, 4, 5, 6]
    assert [entry.version for entry in list_entries(repository)[0]] == versions


def test_writers_of_neighbouring_repositories_do_not_meet(tmp_path: Path) -> None:
    def write(repository: Path) -> None:
        publish(repository, "model", make())
        for _ in range(50):
            (repository / "model" / "config.pbtxt").unlink()
            write_config(repository, "model")

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, [tmp_path / f"repository_{number}" for number in range(4)]))
    assert len(list(tmp_path.iterdir())) == 4


def test_a_damaged_version_is_mended_by_publishing_again(repository: Path, entry: Entry) -> None:
    (entry.build_folder / "generator.onnx").write_bytes(b"damaged")
    mended, is_new = publish(repository, "model", make())
    assert (mended.version, is_new) == (2, True)
    assert newest_entries(repository) == [mended]
    (mended.folder / MODEL_JSON).write_text("{}")
    again, is_new = publish(repository, "model", make())
    assert (again.version, is_new) == (3, True)
    assert newest_entries(repository) == [again]


def test_strays_are_seen_and_not_taken_for_entries(repository: Path, entry: Entry) -> None:
    stray = repository / "notes"
    stray.mkdir()
    (repository / "README.md").write_text("ours")
    assert list_strays(repository) == [stray]
    assert newest_entries(repository) == [entry]


def test_names_that_are_not_there(repository: Path, entry: Entry) -> None:
    with pytest.raises(NotFound, match="cat is not in .*; there: model"):
        newest_entries(repository, ("cat",))
    with pytest.raises(NotFound, match="is no folder; give the model repository"):
        newest_entries(repository / "nowhere")


def test_an_empty_repository_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="holds no entry; run `latentry export CHECKPOINT` first"):
        newest_entries(tmp_path)


@pytest.mark.parametrize("name", ["model.stream", "../model", "Model", ""])
def test_names_that_are_not_allowed(repository: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="is not allowed; use 1 to 64 of a-z, 0-9, _ and -"):
        publish(repository, name, make())
    assert not repository.exists() or not list(repository.iterdir())


def test_removing_a_version_brings_the_one_before_back(repository: Path, entry: Entry) -> None:
    publish(repository, "model", make(b"other"))
    remove_entry(repository, "model", 2)
    assert newest_entries(repository) == [entry]
    assert entry.digest in (repository / "model" / "config.pbtxt").read_text()
    remove_entry(repository, "model")
    assert not (repository / "model").exists()
    with pytest.raises(NotFound, match="model is not in .*`latentry models` lists what is"):
        remove_entry(repository, "model")


@pytest.mark.parametrize("name", ["*", "mode?", "../model_repository/model", "model/"])
def test_a_pattern_removes_nothing(repository: Path, entry: Entry, name: str) -> None:
    with pytest.raises(BadRequest, match="is not allowed"):
        remove_entry(repository, name)
    assert newest_entries(repository) == [entry]


def test_what_two_remove_goes_once(repository: Path, entry: Entry) -> None:
    def remove(_: int) -> int:
        try:
            return len(remove_entry(repository, "model"))
        except NotFound:
            return 0

    for _ in range(10):
        publish(repository, "model", make())
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(remove, range(4))) == 1


def test_what_is_written_lies_inside_where_nothing_may_lie_beside(
    repository: Path, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    with temporary_folder(repository) as folder:
        assert folder.parent == repository.parent
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != repository.parent)
    with temporary_folder(repository) as folder:
        assert folder.parent == repository
        assert list_strays(repository) == []
    assert list_strays(repository) == []


def test_what_killed_writers_left_goes_with_the_next_one(repository: Path, entry: Entry) -> None:
    left = [
        folder / f".latentry-tmp-{repository.name}-x" for folder in (repository.parent, repository)
    ]
    neighbours = repository.parent / ".latentry-tmp-others-x"
    for folder in (*left, neighbours):
        (folder / "1").mkdir(parents=True)
    publish(repository, "other", make())
    assert [folder.exists() for folder in left] == [False, False]
    assert neighbours.exists()


def test_a_cleaner_may_be_quicker(repository: Path, entry: Entry) -> None:
    with temporary_folder(repository) as folder:
        folder.rmdir()
    shutil.rmtree(entry.folder.parent)
    write_config(repository, "model")
    assert list(repository.iterdir()) == []


def test_who_writes_is_told_that_there_is_no_repository(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="is no folder; give the model repository"):
        tune_entry(tmp_path / "gone", "model", {}, build_digest="0" * 64)
    with pytest.raises(NotFound, match="is no folder; give the model repository"):
        remove_entry(tmp_path / "gone", "model")
    assert list(tmp_path.iterdir()) == []


def test_config_pbtxt_is_left_where_the_newest_version_is_damaged(
    repository: Path, entry: Entry
) -> None:
    path = repository / "model" / "config.pbtxt"
    path.write_text("old")
    (entry.folder / MODEL_JSON).write_text("{")
    write_config(repository, "model")
    assert path.read_text() == "old"


def test_config_pbtxt_may_be_written_again(repository: Path, entry: Entry) -> None:
    path = repository / "model" / "config.pbtxt"
    before = path.read_text()
    path.unlink()
    write_config(repository, "model")
    assert path.read_text() == before


def test_an_entry_may_be_copied_to_another_repository(entry: Entry, tmp_path: Path) -> None:
    shutil.copytree(entry.folder.parent, tmp_path / "elsewhere" / "model")
    (copied,) = newest_entries(tmp_path / "elsewhere")
    verify_entry(copied)
    assert copied.digest == entry.digest


def test_tuning_changes_the_serving_part_and_nothing_else(repository: Path, entry: Entry) -> None:
    before = {path: path.read_bytes() for path in entry.folder.rglob("*.*") if path.is_file()}
    changes = {"instances": 3, "threads": 1, "max_batch_size": 8}
    tuned = tune_entry(repository, "model", changes, build_digest=entry.build.digest)
    (found,) = newest_entries(repository, ("model",))
    assert found == tuned
    assert found.digest == entry.digest
    assert found.build.serving.instances == 3
    assert found.build.serving.max_queue_size == entry.build.serving.max_queue_size
    assert found.build.parity == entry.build.parity
    verify_entry(found)
    changed = [path.name for path, data in before.items() if path.read_bytes() != data]
    assert changed == [BUILD_JSON]
    config = (repository / "model" / "config.pbtxt").read_text()
    assert "count: 3" in config
    assert "max_batch_size: 8" in config
    assert list(repository.parent.iterdir()) == [repository]


def names_below(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*")}


def test_a_tuner_that_is_killed_leaves_no_litter_in_the_entry(
    repository: Path, entry: Entry, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, seen = os.replace, []

    def see(*names: Path) -> None:
        seen.append(names_below(entry.folder))
        replace(*names)

    before = names_below(entry.folder)
    monkeypatch.setattr(os, "replace", see)
    tune_entry(repository, "model", {"instances": 3}, build_digest=entry.build.digest)
    assert len(seen) == 2  # build.json and the configuration
    assert all(names == before for names in seen)


def test_tuning_refuses_another_digest_and_what_is_not_allowed(
    repository: Path, entry: Entry
) -> None:
    digest = entry.build.digest
    with pytest.raises(
        BadRequest,
        match="no build with the digest 000000000000, with which the values were measured; p",
    ):
        tune_entry(repository, "model", {"instances": 3}, build_digest="0" * 64)
    with pytest.raises(BadRequest, match="instances"):
        tune_entry(repository, "model", {"instances": 0}, build_digest=digest)
    with pytest.raises(BadRequest, match="cannot be served so"):
        tune_entry(repository, "model", {"speed": 9}, build_digest=digest)
    with pytest.raises(NotFound, match="other is not in"):
        tune_entry(repository, "other", {}, build_digest=digest)
    with pytest.raises(BadRequest, match="model name '../model' is not allowed"):
        tune_entry(repository, "../model", {}, build_digest=digest)
    assert newest_entries(repository, ("model",)) == [entry]


def test_no_batch_goes_beyond_what_was_proved(repository: Path) -> None:
    parity = PARITY.model_copy(update={"batch_sizes": (1, 3, 7, 16)})
    draft = make(parity=parity, serving=ServingPart(max_batch_size=8))
    entry, _ = publish(repository, "proved", draft)
    assert with_serving(entry, {"max_batch_size": 16}).build.serving.max_batch_size == 16
    with pytest.raises(BadRequest, match=r"17 is more than the export of proved proved \(16\)"):
        with_serving(entry, {"max_batch_size": 17})
    with pytest.raises(BadRequest, match="export it again with --max-batch 64"):
        tune_entry(repository, "proved", {"max_batch_size": 64}, build_digest=entry.build.digest)
