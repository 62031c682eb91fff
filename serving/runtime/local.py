"""Draw in this process, without a server: the same checks, latents, engine and encoders.

For tests of code that uses a client, for notebooks, and for comparing with a server::

    with Client(transport=LocalTransport("model_repository")) as client:
        client.generate("digits", seeds=range(8), class_label=7)
"""

import os
import re
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from latentry.contract.errors import BadRequest, LatentryError, NotFound, listed
from latentry.contract.transport import ModelInfo, Reply
from latentry.contract.wire import Arrays
from latentry.serving.entries.builds import with_build_digest
from latentry.serving.entries.manifests import FP32, read_model
from latentry.serving.entries.repository import (
    Entry,
    build_names,
    newest_entries,
    read_entry,
    version_folders,
)
from latentry.serving.entries.verification import verify_entry
from latentry.serving.runtime.engines.choosing import runnable
from latentry.serving.runtime.engines.registry import expected_class, load_network
from latentry.serving.runtime.generator import Generator, load_generator
from latentry.serving.runtime.streaming import stream_from_request


class LocalTransport:
    """Answers a client with the entries of a model repository, in one thread of this process.

    A :class:`latentry.contract.transport.Transport` for ``Client`` and ``AsyncClient``.
    """

    def __init__(
        self,
        repository: str | Path,
        models: tuple[str, ...] = (),
        *,
        threads: int = 0,
        model_digest: str | None = None,
        build: str | None = None,
    ) -> None:
        """Verify the newest entries (of ``models`` only, where given).

        Args:
            repository: The model repository.
            models: Names; empty means all.
            threads: Engine threads; 0 means one for each core.
            model_digest: Take the versions with this digest, whether or not they are the newest.
            build: The build to draw with, its name or, beside ``model_digest``, its digest; None
                for each entry's default one.

        Raises:
            NotFound: There is no such repository, model, version or build.
            EngineMissing: The build that was asked for cannot run here.
            EntryError: An entry is damaged.
        """
        self._made_anew = partial(
            type(self),
            repository,
            models,
            threads=threads,
            model_digest=model_digest,
            build=build,
        )
        self._entries = {
            entry.name: runnable(entry, is_asked=build is not None)
            for entry in _entries(Path(repository), models, model_digest, build)
        }
        for entry in self._entries.values():
            verify_entry(entry)
        self._threads = threads
        self._generators: dict[str, Generator] = {}
        self._closed = False
        self._process = os.getpid()
        self._thread = _one_thread()

    def __reduce__(self) -> tuple[Any, ...]:
        return self._made_anew, ()

    def ready(self) -> bool:
        """Return True."""
        return True

    def model_names(self) -> list[str]:
        """Names of the entries."""
        return sorted(self._entries)

    def model_info(self, model: str) -> ModelInfo:
        """What the entry says of itself; raises NotFound."""
        entry = self._entry(model)
        return ModelInfo(
            name=model,
            version=str(entry.version),
            model_digest=entry.digest,
            build=entry.build.name,
            build_digest=entry.build.digest,
            engine_class=expected_class(entry.build),
            spec=entry.spec,
            max_batch_size=entry.build.serving.max_batch_size,
        )

    def infer(self, model: str, inputs: Arrays) -> Future[Reply]:
        """Draw one batch."""
        if self._closed:
            raise BadRequest("this transport is closed; make a new one")
        if self._process != os.getpid():
            # Neither the thread nor those of the engines came through the fork.
            self._process = os.getpid()
            self._thread = _one_thread()
            self._generators = {}
        return self._thread.submit(self._draw, model, inputs)

    def stream(self, model: str, requests: Iterator[Arrays]) -> Iterator[Reply]:
        """Draw chunk after chunk, each when it is asked for."""
        entry = self._entry(model)
        most = entry.build.serving.max_batch_size
        for request in requests:
            stream = stream_from_request(entry.spec, request, max_batch_size=most)
            for index, tensors in stream.chunks(most):
                reply = self.infer(model, tensors).result()
                outputs = {
                    name: array.reshape(-1) if name.endswith(".encoded") else array
                    for name, array in reply.outputs.items()
                }
                outputs["index"] = np.array([index], np.int64)
                yield Reply(reply.version, outputs)

    def close(self) -> None:
        """Let the engines go."""
        self._closed = True
        if self._process == os.getpid():
            self._thread.shutdown()
        self._generators.clear()

    def _entry(self, model: str) -> Entry:
        try:
            return self._entries[model]
        except KeyError:
            known = listed(self.model_names())
            raise NotFound(f"model {model!r} is not being served; these are: {known}") from None

    def _generator(self, model: str) -> Generator:
        if model not in self._generators:
            load = partial(load_network, threads=self._threads)
            self._generators[model] = load_generator(self._entry(model), load)
        return self._generators[model]

    def _draw(self, model: str, inputs: Arrays) -> Reply:
        version = str(self._entry(model).version)
        answer = self._generator(model).answer([inputs])[0]
        if isinstance(answer, LatentryError):
            raise answer
        return Reply(version, answer)


def _one_thread() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(max_workers=1, thread_name_prefix="latentry-local")


def _entries(
    repository: Path, models: tuple[str, ...], model_digest: str | None, build: str | None
) -> list[Entry]:
    """Return the newest entries, or those with a digest, each with the build that is meant."""
    names = models or tuple(sorted({path.parent.name for path in version_folders(repository)}))
    if model_digest is None:
        builds = dict.fromkeys(names, build) if build else None
        return newest_entries(repository, models, builds)
    found = [_with_digest(repository, name, model_digest, build) for name in names]
    if not any(found):
        there = listed(f"{e.name} {e.digest}" for e in newest_entries(repository, models))
        raise NotFound(
            f"{repository} holds no version of {listed(names)} with the model digest "
            f"{model_digest}; the newest: {there}"
        )
    return [entry for entry in found if entry]


def _with_digest(repository: Path, name: str, digest: str, build: str | None) -> Entry | None:
    """Return the newest version of a model that has this digest, and the build where one is named.

    Raises:
        NotFound: There is the model, and no version of it has the build.
        EntryError: What has the digest is damaged.
    """
    folders = sorted(version_folders(repository, name), key=lambda path: -int(path.name))
    refusal: LatentryError | None = None
    for folder in folders:
        try:
            if read_model(folder).digest != digest:
                continue
            if build is None or not re.fullmatch("[0-9a-f]{64}", build):
                return read_entry(folder, build)
            if found := with_build_digest(read_entry(folder, FP32), build):
                return found
            raise NotFound(
                f"{name} version {folder.name} has no build with the digest {build}; it has "
                f"{listed(build_names(folder))}"
            )
        except LatentryError as error:
            refusal = refusal or error
    if refusal:
        raise refusal
    return None
