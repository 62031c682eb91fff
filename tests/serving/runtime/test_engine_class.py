from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from latentry.serving.runtime.engines import engine_class


@pytest.mark.parametrize(
    ("machine", "flags", "level"),
    [
        ("aarch64", "", "aarch64"),
        ("x86_64", "sse4_2", "sse"),
        ("x86_64", "sse4_2 avx2", "avx2"),
        ("AMD64", "avx2 avx512f", "avx512"),
    ],
)
def test_the_level_is_the_processors_best(
    monkeypatch: pytest.MonkeyPatch, machine: str, flags: str, level: str
) -> None:
    monkeypatch.setattr("platform.machine", lambda: machine)
    monkeypatch.setattr(Path, "read_text", lambda _: f"flags : {flags}")
    monkeypatch.setattr(engine_class, "cpu_flags", engine_class.cpu_flags.__wrapped__)
    assert engine_class.vector_level() == level


def test_an_engine_that_is_missing_or_tells_no_version_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "__init__.py").write_text("version = 1\n")
    odd = ModuleSpec("onnxruntime", None, origin=str(tmp_path / "__init__.py"))
    for found, words in ((None, "No module named 'onnxruntime'"), (odd, "has no version")):
        monkeypatch.setattr("importlib.util.find_spec", lambda _, found=found: found)
        with pytest.raises(ModuleNotFoundError, match=words):
            engine_class.engine_class.__wrapped__()
