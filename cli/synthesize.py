"""``latentry synthesize``: make a job, verify one, tell how far it is."""

import difflib
import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from latentry.cli.common.console import Advance, AsJson, echo, echo_json, progress_bar
from latentry.cli.common.exit_codes import EXIT_FAULT, EXIT_INTERRUPTED
from latentry.cli.common.repository_options import DEFAULT_REPOSITORY
from latentry.cli.common.server_options import talks_to_server
from latentry.cli.common.usage import WrongUsage
from latentry.clients.server import DEFAULT_SERVER, Server
from latentry.contract.errors import BadRequest, listed
from latentry.synthesis.crews.crew import Crew, make_here
from latentry.synthesis.job import Job, job_from_file
from latentry.synthesis.records import (
    CONTACT_SHEET_FILE,
    INDEX_FILE,
    JobRecord,
    Totals,
    made_shards,
    read_job,
)
from latentry.synthesis.run import open_record, run_job
from latentry.synthesis.shard_making import DEFAULT_RETRY_FOR_S, Origin, SampleDrawer
from latentry.synthesis.sinks.shards import shard_bytes
from latentry.synthesis.storage.urls import storage_from_url
from latentry.synthesis.verify import verify_job

_SERVER_WORKERS = 4
_TRIED = 256
_MOST_REASONS = 10
_MOST_FAULTS = 20


class DrawWith(StrEnum):
    """Who draws the samples of a job."""

    SERVER = "server"
    LOCAL = "local"
    RAY = "ray"


class _RunByDefault(TyperGroup):
    """``synthesize JOB.toml`` is ``synthesize run JOB.toml``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put ``run`` before what names no subcommand, unless it is nearly one and no file."""
        name = args[0] if args else ""
        if name not in self.commands:
            near = difflib.get_close_matches(name, self.commands, n=1)
            if near and not Path(name).suffix and not Path(name).exists():
                ctx.fail(f"there is no command {name}; did you mean {near[0]}?")
            args = ["run", *args]
        return super().parse_args(ctx, args)


app = typer.Typer(cls=_RunByDefault, add_completion=False)

DrawWithOption = Annotated[
    DrawWith,
    typer.Option(
        help="server: a running one; local: processes here, no server; ray: a Ray cluster."
    ),
]
RepositoryOption = Annotated[
    Path, typer.Option(help="The model repository, for --draw-with local and ray.")
]
RetryOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        help="Wait so many seconds for a server that is busy, lost or not there yet; if left out "
        f"{DEFAULT_RETRY_FOR_S:g} for one that was there.",
    ),
]
WorkersOption = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; if left out one for each core, 4 with a server."),
]
OutArgument = Annotated[str, typer.Argument(help="Folder or URL of the job's output.")]


@app.command()
@talks_to_server
def run(
    job: Annotated[Path, typer.Argument(help="The job, a TOML file.")],
    out: Annotated[
        str | None,
        typer.Option(help="Folder, or URL that fsspec knows; the job's name if left out."),
    ] = None,
    draw_with: DrawWithOption = DrawWith.SERVER,
    server: Server = DEFAULT_SERVER,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    workers: WorkersOption = None,
    address: Annotated[
        str | None, typer.Option(help="Address of the Ray cluster; a local one if left out.")
    ] = None,
    retry_for_s: RetryOption = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Make only the shards with the first so many samples.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show plan, size and time; write nothing.")
    ] = False,
    take_over: Annotated[
        bool,
        typer.Option("--take-over", help="Go on although a machine that is gone holds the lock."),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Make the samples of a job; run it again after anything, and it goes on.

    `latentry synthesize verify OUT` checks what was made, `latentry synthesize status OUT` says
    how far it is. docs/synthesis.md describes the job's file. For example:

        latentry synthesize job.toml --dry-run

        latentry synthesize job.toml --out digits/ --limit 1000

        latentry synthesize job.toml --out digits/ --draw-with local
    """
    what = job_from_file(job)
    where = out or job.stem
    origin = _origin(draw_with, server, repository, retry_for_s)
    if dry_run:
        _show_estimate(what, origin, _count(draw_with, workers), as_json=as_json)
        return
    crew = _crew(draw_with, workers, address)
    started = time.monotonic()
    with _interruptible(where), _progress(what, quiet=as_json) as told:
        totals = run_job(
            what,
            origin,
            where,
            crew=crew,
            limit=limit,
            take_over=take_over,
            on_start=told.start,
            on_fault=told.fault,
            progress=told.advance,
        )
        told.end()
    _show_totals(where, totals, time.monotonic() - started, limit, as_json=as_json)


@app.command()
@talks_to_server
def verify(
    out: OutArgument,
    samples: Annotated[
        int, typer.Option(min=0, help="Draw so many samples again, at random; 0 needs no source.")
    ] = 64,
    draw_with: DrawWithOption = DrawWith.SERVER,
    server: Server = DEFAULT_SERVER,
    repository: RepositoryOption = DEFAULT_REPOSITORY,
    job: Annotated[
        Path | None, typer.Option(help="The job's file, where its folders of pictures are told.")
    ] = None,
    workers: WorkersOption = None,
    as_json: AsJson = False,
) -> None:
    """Check every hash of a job's output, and draw some samples again. Exit code 1 on any fault.

    Also lists images that are there more than once; those are no fault.

        latentry synthesize verify digits/

        latentry synthesize verify digits/ --draw-with local --samples 500
    """
    origin = _origin(draw_with, server, repository) if samples else None
    folders = job_from_file(job).folders if job else {}
    count = workers or len(os.sched_getaffinity(0))
    record = read_job(storage_from_url(out))
    with progress_bar("verify", record.samples, quiet=as_json) as progress:
        verdict = verify_job(
            out, origin, samples=samples, folders=folders, workers=count, progress=progress
        )
    if as_json:
        echo_json(verdict.as_json())
    else:
        for line in verdict.lines():
            echo(line)
    if verdict.problems:
        raise typer.Exit(EXIT_FAULT)


@app.command()
def status(out: OutArgument, as_json: AsJson = False) -> None:
    """Tell how far a job is: shards, samples, classes, rejections. Exit code 0 whole, 1 not.

    latentry synthesize status digits/
    """
    storage = storage_from_url(out)
    record = read_job(storage)
    totals, faults = Totals(), list[str]()
    for made in made_shards(storage, record, faults):
        totals.add(made)
    whole = INDEX_FILE in storage.sizes() and totals.samples == record.samples
    owner = storage.owner()
    if as_json:
        echo_json(
            {
                **_facts(out, record),
                **totals.as_json(),
                "whole": whole,
                "locked_by": owner,
                "faults": faults,
            }
        )
    else:
        state = "whole" if whole else f"being made by {owner}" if owner else "not whole"
        echo(f"{out}: {state}, {record.job.model} {record.model_digest[:12]}")
        echo(f"shards   {totals.shards:,} of {record.shards:,}")
        echo(f"samples  {totals.samples:,} of {record.samples:,}, {_size(totals.size)}")
        _show_counts(totals)
        for fault in faults[:_MOST_REASONS]:
            echo(f"fault    {fault}")
        if faults:
            echo(f"faults   {len(faults):,}; the job's own command makes those shards again")
    if not whole:
        raise typer.Exit(EXIT_FAULT)


def _origin(
    draw_with: DrawWith, server: Server, repository: Path, retry_for_s: float | None = None
) -> Origin:
    if draw_with is DrawWith.SERVER:
        return Origin(server=server, retry_for_s=retry_for_s)
    if server != DEFAULT_SERVER:
        raise WrongUsage(
            "--url, --tls, --ca and --token-file go with --draw-with server; "
            f"--draw-with {draw_with} needs none"
        )
    return Origin(repository=repository.resolve())


def _count(draw_with: DrawWith, workers: int | None) -> int:
    return workers or (
        _SERVER_WORKERS if draw_with is DrawWith.SERVER else len(os.sched_getaffinity(0))
    )


def _crew(draw_with: DrawWith, workers: int | None, address: str | None) -> Crew:
    if address is not None and draw_with is not DrawWith.RAY:
        raise WrongUsage("--address goes with --draw-with ray")
    if draw_with is DrawWith.RAY:
        from latentry.synthesis.crews.ray import RayCrew

        return RayCrew(address, workers)
    count = _count(draw_with, workers)
    if count == 1:
        return make_here
    from latentry.synthesis.crews.processes import ProcessCrew

    return ProcessCrew(count, pinned=draw_with is DrawWith.LOCAL)


@contextmanager
def _interruptible(out: str) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)  # what Slurm, Kubernetes and timeout send
    try:
        yield
    except KeyboardInterrupt:
        echo(f"stopped: what is made stays in {out}; the same command goes on", err=True)
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        signal.signal(signal.SIGTERM, before)


@dataclass
class _Told:
    """Shows what a run tells of itself."""

    advance: Advance
    quiet: bool
    faults: int = 0

    def start(self, record: JobRecord, to_make: int, there: int) -> None:
        """Show how much there is to do, once the job is known."""
        if not self.quiet and there:
            shards = f"{there:,} shards are there" if there > 1 else "1 shard is there"
            echo(f"{shards}, to be checked; making {to_make:,} samples", err=True)
        self.advance.start(to_make)

    def fault(self, text: str, more: int) -> None:
        """Show why a shard was made again, and count its samples."""
        self.faults += 1
        if self.faults <= _MOST_FAULTS:
            echo(f"{text}; it was made again", err=True)
        self.advance.expect(more)

    def end(self) -> None:
        """Say how many faults were not shown."""
        if (more := self.faults - _MOST_FAULTS) > 0:
            echo(f"and {more:,} more that were made again", err=True)


@contextmanager
def _progress(job: Job, *, quiet: bool) -> Iterator[_Told]:
    """Show a run as a bar."""
    with progress_bar(job.model, None, quiet=quiet) as advance:
        yield _Told(advance, quiet)


def _show_estimate(job: Job, origin: Origin, workers: int, *, as_json: bool) -> None:
    record = open_record(job, origin)
    plan = record.plan
    with closing(SampleDrawer(record, origin)) as drawer:
        drawer.draw_samples(plan.shard(0), 8)  # warm
        started = time.perf_counter()
        samples = drawer.draw_samples(plan.shard(0), _TRIED)
        elapsed_s = time.perf_counter() - started
    if not samples:
        raise BadRequest(f"none of the first {_TRIED} samples is finite, or has a sound picture")
    data = shard_bytes(samples, job.output, record.spec, record.model_digest)
    size = len(data) * plan.samples // len(samples)
    # A server is kept busy by one client alone; processes here each have their own core.
    together = 1 if origin.repository is None else min(workers, len(os.sched_getaffinity(0)))
    rate = len(samples) / elapsed_s * together
    seeds = [plan.first_seed, plan.first_seed + plan.samples - 1]
    facts = {
        **_facts("", record),
        "seeds": seeds,
        "reserve_per_shard": plan.reserve,
        "last_reserve_seed": seeds[1] + plan.shards * plan.reserve,
        "samples_per_shard": plan.size(0),
        "bytes": size,
        "images_per_second": round(rate, 1),
        "seconds": round(plan.samples / rate, 1),
    }
    if as_json:
        echo_json(facts)
        return
    echo(f"model    {job.model} {record.model_digest[:12]}, {record.build}, {record.engine_class}")
    echo(f"samples  {plan.samples:,}, seeds {seeds[0]} to {seeds[1]}")
    for label, count in plan.counts:
        if label is not None:
            echo(f"         class {label}: {count:,}")
    echo(f"shards   {plan.shards:,} of about {plan.size(0):,}, {job.output.format}")
    echo(f"reserve  {plan.reserve:,} seeds a shard, to {facts['last_reserve_seed']}")
    echo(f"size     about {_size(size)}, by {len(samples)} samples")
    echo(f"time     about {_duration(plan.samples / rate)}, {rate:.0f} images/s")
    echo("nothing was written")


def _show_totals(
    out: str, totals: Totals, elapsed_s: float, limit: int | None, *, as_json: bool
) -> None:
    storage = storage_from_url(out)
    whole = INDEX_FILE in storage.sizes()
    if as_json:
        echo_json({**_facts(out, read_job(storage)), **totals.as_json(), "whole": whole})
    else:
        what = f"{totals.samples:,} samples in {totals.shards:,} shards, {_size(totals.size)}"
        echo(f"{out}: {what}, {_duration(elapsed_s)}")
        _show_counts(totals)
        if CONTACT_SHEET_FILE in storage.sizes():
            echo(f"contact sheet: {out.rstrip('/')}/{CONTACT_SHEET_FILE}")
    if totals.missing:
        which = listed(
            f"{count:,} of class {label}" if label else f"{count:,}"
            for label, count in totals.missing.items()
        )
        why = (
            "the shards' reserves are used up, or pictures are bad; look at the rejections, mend "
            "the pictures or take them out"
            if read_job(storage).folders
            else "the shards' reserves are used up; look at the rejections"
        )
        echo(
            f"error: incomplete: {which} missing, {why}, raise [samples] reserve or loosen the "
            "filters, and give another --out",
            err=True,
        )
        raise typer.Exit(EXIT_FAULT)
    if not whole and limit is None:
        echo(
            f"error: shards that were made are not in {out}; is it one folder for all nodes?",
            err=True,
        )
        raise typer.Exit(EXIT_FAULT)
    if not whole and not as_json:
        echo("a trial: without --limit the same command makes the rest")


def _show_counts(totals: Totals) -> None:
    counts = totals.as_json()
    if any(counts["by_class"]):
        classes = listed(f"{label}: {count:,}" for label, count in counts["by_class"].items())
        echo(f"classes  {classes}")
    if counts["rejected"]:
        common = totals.rejected.most_common(_MOST_REASONS)
        others = totals.rejected.total() - sum(count for _, count in common)
        reasons = [f"{count:,} {reason}" for reason, count in common]
        echo(f"rejected {', '.join(reasons + [f'{others:,} for other reasons'] * (others > 0))}")


def _facts(out: str, record: JobRecord) -> dict[str, Any]:
    return {
        "out": out,
        "model": record.job.model,
        "model_digest": record.model_digest,
        "build": record.build,
        "build_digest": record.build_digest,
        "engine_class": record.engine_class,
        "planned_samples": record.samples,
        "planned_shards": record.shards,
    }


def _size(count: int) -> str:
    for unit, factor in (("GB", 1e9), ("MB", 1e6)):
        if count >= factor:
            return f"{count / factor:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _duration(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
