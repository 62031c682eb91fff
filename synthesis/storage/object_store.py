"""A job's files in an object store, by fsspec."""

import base64
import contextlib
import hashlib
import io
import re
from collections.abc import Iterator, Mapping
from typing import Any, BinaryIO

from latentry.contract.errors import BadRequest, JobError, LatentryError, OutOfSpace, ServerGone
from latentry.contract.files import FULL
from latentry.synthesis.storage.protocol import ATTEMPTS, MOST_BYTES, other_size


class ObjectStore:
    """Objects under a URL of fsspec's; one upload each, no lock.

    Two writers of one job write the same bytes, so they need no lock.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        self.url = url.rstrip("/")
        try:
            self._files, self._root = fsspec.core.url_to_fs(self.url)
        except (ImportError, ValueError) as error:
            raise BadRequest(
                f"--out {url}: {error}; give a folder, or install the package of fsspec's that "
                "knows such URLs"
            ) from error

    def sizes(self) -> dict[str, int]:
        """Return the size of every object."""
        self._files.invalidate_cache()
        with self._explained("listed"):
            try:
                found = self._files.ls(self._root, detail=True)
            except FileNotFoundError:
                return {}
        return {
            str(item["name"]).rpartition("/")[2]: int(item["size"] or 0)
            for item in found
            if item["type"] == "file"
        }

    def holds(self, name: str) -> bool:
        """Whether there is an object of this name."""
        with self._explained(f"read ({name})"):
            return bool(self._files.exists(f"{self._root}/{name}"))

    def told(self, name: str) -> tuple[int, str]:
        """Return an object's size and, where the store tells it, its MD5."""
        self._files.invalidate_cache()
        with self._explained(f"read ({name})"), self._there(name):
            info = self._files.info(f"{self._root}/{name}")
        return int(info["size"] or 0), _told_md5(info)

    def sha256(self, name: str, *, most: int) -> str:
        """Return the SHA-256 of an object, which is fetched for it."""
        self._check_size(name, most)
        with (
            self._explained(f"read ({name})"),
            self._there(name),
            self._files.open(f"{self._root}/{name}", "rb") as file,
        ):
            return hashlib.file_digest(file, "sha256").hexdigest()

    def open(self, name: str, *, size: int) -> BinaryIO:
        """Return an object's bytes as a file."""
        found, _ = self.told(name)
        if found != size:
            raise other_size(f"{self.url}/{name}", found, size)
        return io.BytesIO(self.read(name, most=size))

    def read(self, name: str, *, most: int = MOST_BYTES) -> bytes:
        """Return an object's bytes."""
        self._check_size(name, most)
        with self._explained(f"read ({name})"), self._there(name):
            data: bytes = self._files.cat_file(f"{self._root}/{name}")
        return data

    def _check_size(self, name: str, most: int) -> None:
        if self.told(name)[0] > most:
            raise JobError(f"{self.url}/{name} is larger than {most:,} bytes")

    @contextlib.contextmanager
    def _there(self, name: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError:
            raise JobError(f"{self.url}/{name} is missing") from None

    def write(self, name: str, data: bytes) -> None:
        """Upload an object; it appears whole, as object stores do it."""
        # Where there are folders; a bucket that is not there is a mistake, and is not made.
        with contextlib.suppress(Exception):
            self._files.mkdir(self._root, create_parents=False)
        for attempt in range(ATTEMPTS):
            try:
                with self._explained(f"written ({name}, {len(data):,} bytes)"):
                    self._files.pipe_file(f"{self._root}/{name}", data)
            except ServerGone:
                if attempt == ATTEMPTS - 1:
                    raise
            else:
                return

    def remove(self, name: str) -> None:
        """Remove an object."""
        with self._explained(f"removed ({name})"), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(f"{self._root}/{name}")

    @contextlib.contextmanager
    def _explained(self, what: str) -> Iterator[None]:
        """Turn what the packages of fsspec raise, which share no base, into errors of ours."""
        try:
            yield
        except LatentryError:
            raise
        except Exception as error:
            text = f"{self.url} cannot be {what}: {type(error).__name__}: {error}"
            if isinstance(error, OSError) and error.errno in FULL:
                raise OutOfSpace(f"{text}; free some and run the same command again") from error
            raise ServerGone(
                f"{text}; check the address and its credentials, then run the same command "
                "again, it goes on from here"
            ) from error

    @contextlib.contextmanager
    def locked(self, *, take_over: bool = False) -> Iterator[None]:
        """Do nothing."""
        yield

    def owner(self) -> str:
        """Return that nobody is known."""
        return ""


def _told_md5(info: Mapping[str, Any]) -> str:
    """Return the MD5 in what fsspec knows of an object, hexadecimal; empty where there is none.

    S3 has it as the ETag of what was uploaded in one part, without a key of the customer's;
    Google Cloud Storage as ``md5Hash``.
    """
    if re.fullmatch("[0-9a-f]{32}", tag := str(info.get("ETag", "")).strip('"')):
        return tag
    with contextlib.suppress(ValueError):
        return base64.b64decode(str(info.get("md5Hash", "")), validate=True).hex()
    return ""
