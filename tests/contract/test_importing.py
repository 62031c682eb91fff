import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from latentry.contract.errors import BadRequest, LatentryError, NotFound
from latentry.contract.importing import function_from_target


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    """Forget what a test imports."""
    path, modules = list(sys.path), set(sys.modules)
    yield
    sys.path[:] = path
    for name in set(sys.modules) - modules:
        del sys.modules[name]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "own_package").mkdir()
    (tmp_path / "own_package" / "hooks.py").write_text("def judge():\n    return 7\nNUMBER = 7\n")
    (tmp_path / "own_missing.py").write_text("import own_dependency\n")
    (tmp_path / "own_broken.py").write_text("def\n")
    (tmp_path / "own_leaving.py").write_text("raise SystemExit('no')\n")
    return tmp_path


def test_a_function_is_found_in_its_folder(folder: Path) -> None:
    assert function_from_target("own_package.hooks:judge", folder)() == 7


def test_the_folder_comes_before_what_is_installed(folder: Path, tmp_path: Path) -> None:
    installed = tmp_path / "installed"
    (installed / "own_package").mkdir(parents=True)
    (installed / "own_package" / "hooks.py").write_text("def judge():\n    return 8\n")
    sys.path.insert(0, str(installed))
    assert function_from_target("own_package.hooks:judge", folder)() == 7


@pytest.mark.parametrize(
    ("target", "kind", "words"),
    [
        ("hooks", BadRequest, "names no function; write it as my_package"),
        ("own_package.hooks:", BadRequest, "names no function"),
        ("../hooks:judge", BadRequest, "names no function"),
        ("own_package.hooks:judje", NotFound, r"hooks\.py\) has no 'judje'; .*: judge$"),
        ("own_package.hooks:NUMBER", BadRequest, "is a int; name a function"),
        ("own_package.hook:judge", NotFound, r"no Python module 'own_package\.hook' in "),
        ("own_nothing:judge", NotFound, "no Python module 'own_nothing' in "),
        ("own_missing:judge", NotFound, "was found, but it imports 'own_dependency', which"),
        ("own_broken:judge", BadRequest, "importing own_broken failed: SyntaxError"),
        ("own_leaving:judge", BadRequest, "importing own_leaving failed: SystemExit: no"),
    ],
)
def test_what_is_wrong_is_said(
    target: str, kind: type[LatentryError], words: str, folder: Path
) -> None:
    with pytest.raises(kind, match=words):
        function_from_target(target, folder)
