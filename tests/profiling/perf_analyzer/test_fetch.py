import shutil
import subprocess
import zipfile
from pathlib import Path

import pytest

from latentry.contract.errors import NotFound
from latentry.contract.files import sha256_regular
from latentry.profiling.perf_analyzer import fetch
from latentry.profiling.perf_analyzer.fetch import fetch_perf_analyzer
from latentry.profiling.perf_analyzer.program import fetched_folder, find_perf_analyzer

PROGRAM = "#!/bin/sh\necho 'Perf Analyzer Version 2.51.0 (commit unknown)'\n"
PACKAGES = ("tritonclient.whl", "nvidia.whl", "libb64-0d_1.2.deb")


def refuse(command: list[str], _: Path) -> None:
    raise subprocess.CalledProcessError(1, command, stderr="no network\n")


def test_a_fetch_that_fails_leaves_nothing(nothing: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "_run", refuse)
    with pytest.raises(NotFound, match=r"cannot be fetched: .* ended with exit code 1: no network"):
        fetch_perf_analyzer()
    assert not fetched_folder().exists()
    assert not list(fetched_folder().parent.iterdir())


class Registries:
    """Stand in for pip and apt-get, which deliver ``packages``; remember what else was run."""

    def __init__(self, packages: Path) -> None:
        self.packages = packages
        self.others: list[str] = []
        self._run = fetch._run

    def __call__(self, command: list[str], folder: Path) -> None:
        if "download" in command:
            for package in self.packages.glob("*.whl" if "pip" in command else "*.deb"):
                shutil.copy(package, folder)
        else:
            self.others.append(command[0])
            self._run(command, folder)


@pytest.fixture
def registries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Registries:
    """Return registries with packages as the real ones are made, and known digests of those."""
    packages = tmp_path / "packages"
    packages.mkdir()
    library = tmp_path / "made" / "usr" / "lib" / "libb64.so.0d"
    library.parent.mkdir(parents=True)
    library.write_text("a library")
    (tmp_path / "made" / "DEBIAN").mkdir()
    (tmp_path / "made" / "DEBIAN" / "control").write_text(
        "Package: libb64-0d\nVersion: 1.2\nArchitecture: all\nMaintainer: nobody\nDescription: x\n"
    )
    names = ("tritonclient-2.51.0.data/data/bin/perf_analyzer", "nvidia/lib/libcudart.so.12")
    for package, name, text in zip(PACKAGES, names, (PROGRAM, "a library"), strict=False):
        with zipfile.ZipFile(packages / package, "w") as archive:
            archive.writestr(name, text)
    (tmp_path / "made" / "DEBIAN").chmod(0o755)  # whatever the umask
    build = ["dpkg-deb", "--build", str(tmp_path / "made"), str(packages / PACKAGES[2])]
    subprocess.run(build, check=True, capture_output=True)
    digests = [sha256_regular(packages / name) for name in PACKAGES]
    monkeypatch.setattr(fetch, "_WHEELS", dict(zip(("one", "two"), digests, strict=False)))
    monkeypatch.setattr(fetch, "_DEBIAN_DIGESTS", {digests[2]})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    found = Registries(packages)
    monkeypatch.setattr(fetch, "_run", found)
    return found


def test_what_is_known_is_fetched_and_runs(registries: Registries) -> None:
    tool = fetch_perf_analyzer()
    assert tool.version() == "2.51.0"
    assert find_perf_analyzer() is not None
    assert {path.name for path in fetched_folder().iterdir()} == {
        *("perf_analyzer", "libcudart.so.12", "libb64.so.0d")
    }
    assert list(fetched_folder().parent.iterdir()) == [fetched_folder()]
    assert registries.others == ["dpkg-deb"]


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_with_a_flipped_byte_is_not_even_unpacked(
    registries: Registries, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = registries.packages / name
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    monkeypatch.setattr(zipfile.ZipFile, "extractall", lambda *_: pytest.fail("unpacked"))
    with pytest.raises(
        NotFound, match=f"{name} is not what is known; its SHA-256 is [0-9a-f]{{64}}"
    ):
        fetch_perf_analyzer()
    assert registries.others == []
    assert not list(fetched_folder().parent.iterdir())


def test_lists_of_packages_that_are_old_are_renewed_once(
    registries: Registries, monkeypatch: pytest.MonkeyPatch
) -> None:
    done: list[str] = []

    def run(command: list[str], folder: Path) -> None:
        done.append(" ".join(command[:2]))
        if command[0] == "apt-get" and "apt-get update" not in done:
            raise subprocess.CalledProcessError(100, command, stderr="unable to locate\n")
        if command[:2] != ["apt-get", "update"]:
            registries(command, folder)

    monkeypatch.setattr(fetch, "_run", run)
    assert fetch_perf_analyzer().version() == "2.51.0"
    assert [step for step in done if step.startswith("apt-get")] == [
        *("apt-get download", "apt-get update", "apt-get download")
    ]


def test_packages_without_the_program_are_named(
    registries: Registries, monkeypatch: pytest.MonkeyPatch
) -> None:
    with zipfile.ZipFile(registries.packages / PACKAGES[0], "w") as archive:
        archive.writestr("README", "nothing else")
    digests = {name: sha256_regular(registries.packages / name) for name in PACKAGES[:2]}
    monkeypatch.setattr(fetch, "_WHEELS", digests)
    with pytest.raises(NotFound, match="the packages do not hold the program and its libraries"):
        fetch_perf_analyzer()
    assert not list(fetched_folder().parent.iterdir())
