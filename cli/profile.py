"""``latentry profile``: measure a served model, or find what holds a latency target."""

import os
import platform
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from latentry.cli.common.exit_codes import EXIT_FAULT, EXIT_INTERRUPTED
from latentry.cli.common.repository_options import DEFAULT_REPOSITORY
from latentry.cli.common.samples import json_from_info
from latentry.cli.common.server_options import talks_to_server
from latentry.cli.common.usage import WrongUsage, reading_options
from latentry.clients.client import Client
from latentry.clients.server import DEFAULT_SERVER, Server
from latentry.clients.transports.channel import address_from_arguments, host_from_url
from latentry.contract.errors import BadRequest, LatentryError
from latentry.contract.system import is_loopback, time_now
from latentry.contract.transport import ModelInfo
from latentry.profiling.cross_check import (
    CROSS_CHECK_MOST_S,
    CrossCheck,
    cross_check,
    cross_check_window_s,
)
from latentry.profiling.extras import (
    ClientOverhead,
    StreamFigures,
    measure_client,
    measure_formats,
    measure_streams,
)
from latentry.profiling.inputs import sample_bytes, valid_inputs
from latentry.profiling.knee import find_knee
from latentry.profiling.load.target import TritonTarget
from latentry.profiling.perf_analyzer.measurement import ProfiledModel
from latentry.profiling.points import Point
from latentry.profiling.private_server import private_target
from latentry.profiling.report.answers import answers
from latentry.profiling.report.comparison import compare
from latentry.profiling.report.contents import Profile
from latentry.profiling.report.files import import_what_it_needs, read_profile, write_report
from latentry.profiling.report.tables import (
    candidate_rows,
    change_rows,
    failed_requests,
    missing_figures,
    point_rows,
)
from latentry.profiling.server_usage import served_configuration
from latentry.profiling.slo.answer import SloAnswer, answer
from latentry.profiling.slo.held_rate import find_held_rate
from latentry.profiling.slo.objective import Objective
from latentry.profiling.slo.search import Search
from latentry.profiling.slo.state import SearchState
from latentry.profiling.sweep import SHARES, SweepPlan, sweep

if TYPE_CHECKING:
    from latentry.serving.entries.repository import Entry

# This very installation, whatever lies on the PATH.
_COMMAND = (sys.executable, "-m", "latentry.cli.main")
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_EXTRA_STEPS = 4
# Of a profile alone; a search for a target takes none of them.
_SWEEP_OPTIONS = (
    *("concurrency", "rates", "batches", "windows", "window_s", "most_s", "quick", "baseline"),
)
_LEAST_WIDTH = 110
_BUSY_LOAD = 0.3  # of the cores

OnStep = Callable[[str], None]


@talks_to_server
def profile(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Name of the model.")],
    server: Server = DEFAULT_SERVER,
    repository: Annotated[
        Path, typer.Option(help="Where the entry is, with its perf_input.json.")
    ] = DEFAULT_REPOSITORY,
    out: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("profile"),
    concurrency: Annotated[
        str, typer.Option(help="Numbers of callers, each waiting for its answer.")
    ] = "1,2,4,8,16,32",
    rates: Annotated[
        str,
        typer.Option(help="Requests a second; 25 to 90 % of the largest throughput if left out."),
    ] = "",
    batches: Annotated[
        str, typer.Option(help="Images of one request; powers of two if left out.")
    ] = "",
    window_s: Annotated[
        float, typer.Option(min=0.1, help="Shortest window; windows are longer where p99 needs it.")
    ] = 0.5,
    most_s: Annotated[
        float, typer.Option(min=0.1, help="Longest measurement of one setting.")
    ] = 8.0,
    windows: Annotated[int, typer.Option(min=2, max=50, help="Windows of each measurement.")] = 6,
    quick: Annotated[
        bool,
        typer.Option(
            "--quick",
            help="Every second number of callers, every third batch, two rates where none are "
            "given; nothing but perf_analyzer.",
        ),
    ] = False,
    slo: Annotated[
        str | None,
        typer.Option(help="Instead: how many requests/s hold this, such as p99=50ms."),
    ] = None,
    budget_s: Annotated[
        float, typer.Option(min=0, help="Seconds for the search; 0 asks the running server only.")
    ] = 900.0,
    baseline: Annotated[
        Path | None, typer.Option(help="report.json of an earlier run, to compare with.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The report on standard output.")] = False,
) -> None:
    """Measure a served model under load; write report.html, report.json and points.csv.

    Concurrency, request rate and batch size are swept with perf_analyzer (see `latentry doctor
    --install perf-analyzer`); streams, formats and the client's own share are measured with a load
    generator that is checked against it. About two minutes.

    With --slo, finds the largest rate that the running server holds, and then changes the entry's
    configuration on private servers until nothing gets better or the budget is spent. Ctrl-C loses
    nothing: the same command goes on. The running server is left as it is.

    For example:

        latentry profile digits

        latentry profile digits --url render-3:8001 --quick --json

        latentry profile digits --slo p99=50ms --out tuning

        latentry models tune digits --from tuning/report.json

        latentry profile digits --baseline before/report.json --out after
    """
    if server.tls or server.ca or server.token_file:
        raise WrongUsage(
            "profile measures without TLS and tokens, which its load generators do not speak; "
            "leave out --tls, --ca and --token-file and measure the server itself, on its machine"
        )
    with reading_options():
        address = address_from_arguments(server.url).url
        objective = Objective.parse(slo) if slo is not None else None
    if objective:
        _refuse_sweep_options(context)
    before = read_profile(baseline) if baseline else None
    import_what_it_needs()
    with Client(address) as client:
        info = client.info(model)
    plan = _plan(concurrency, rates, batches, quick, info, before)
    plan = replace(plan, windows=windows, least_s=window_s * windows, most_s=most_s)
    _create_folder(out)
    failures: list[str] = []
    with valid_inputs(repository, model, address) as (input_file, entry):
        header = _header(info, address, with_perf_analyzer=objective is None)
        if objective:
            found = _hold(objective, info, address, entry, repository, out, budget_s, as_json)
            result = Profile(**header, slo=found)
        else:
            fields, notes, failures = _measure(plan, info, address, input_file, as_json)
            header["notes"] += (*notes, *failures)
            result = Profile(**header, **fields)
    if before:
        result = result.model_copy(update={"baseline": compare(result, before)})
    files = write_report(result, out)
    if as_json:
        typer.echo(result.model_dump_json())
    else:
        _show(result)
        typer.echo(f"{files['html']}, {files['json']}, {files['csv']}")
    if failures or failed_requests(result) or any(point.failure for point in result.points):
        raise typer.Exit(EXIT_FAULT)


def _refuse_sweep_options(context: typer.Context) -> None:
    sources = {name: context.get_parameter_source(name) for name in _SWEEP_OPTIONS}
    given = [name for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        names = ", ".join("--" + name.replace("_", "-") for name in given)
        raise WrongUsage(f"--slo does not go with {names}: it chooses its own rates and settings")


def _create_folder(folder: Path) -> None:
    """Fail now, not after two minutes, where the report could not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise BadRequest(f"--out {folder} cannot be written: {error.strerror}") from error


def _measure(
    plan: SweepPlan, info: ModelInfo, url: str, input_file: Path, quiet: bool
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Return the fields of the profile that is measured, remarks on it, and what failed."""
    from latentry.profiling.perf_analyzer.program import require_perf_analyzer

    tool = require_perf_analyzer()
    profiled = ProfiledModel(tool, url, info.name, input_file, sample_bytes(info.spec))
    steps = len(plan.concurrencies) + len(plan.rates or plan.shares) + len(plan.batches)
    fields: dict[str, Any] = {}
    notes: list[str] = []
    failures: list[str] = []
    with _progress(steps + _EXTRA_STEPS * plan.extras, quiet=quiet) as on_step:
        points = list(sweep(profiled, plan, on_step))
        fields |= {"points": points, "knee": find_knee(points)}
        if plan.extras:
            more, notes, failures = _measure_extras(profiled, points, on_step)
            fields |= more
    return fields, notes, failures


def _measure_extras(
    profiled: ProfiledModel, points: list[Point], on_step: OnStep
) -> tuple[dict[str, Any], list[str], list[str]]:
    """Likewise; what fails takes nothing else with it."""
    fields: dict[str, Any] = {}
    notes: list[str] = []
    failures: list[str] = []

    def check() -> CrossCheck | None:
        rates = [p.value for p in points if p.kind == "request_rate" and not p.failure]
        if not rates:
            return None
        if (window_s := cross_check_window_s(min(rates))) > CROSS_CHECK_MOST_S:
            notes.append(
                "our load generator was not compared with perf_analyzer: at "
                f"{min(rates):g} requests/s one window would take {window_s:.0f} s"
            )
            return None
        return cross_check(profiled, min(rates))

    def streams() -> StreamFigures:
        with Client(profiled.url) as client:
            return measure_streams(client, profiled.model, 5.0)

    def overhead() -> ClientOverhead:
        with Client(profiled.url) as client:
            return measure_client(client, profiled.url, profiled.model)

    steps: dict[str, tuple[str, Callable[[], Any]]] = {
        "cross_check": ("our load generator against perf_analyzer", check),
        "streams": ("streams", streams),
        "formats": ("formats", lambda: measure_formats(profiled.url, profiled.model)),
        "client": ("the client's own share", overhead),
    }
    for field, (what, measure) in steps.items():
        on_step(what)
        try:
            fields[field] = measure()
        except LatentryError as error:
            failures.append(f"not measured: {what}: {error}")
    return fields, notes, failures


def _hold(
    objective: Objective,
    info: ModelInfo,
    url: str,
    entry: "Entry | None",
    repository: Path,
    out: Path,
    budget_s: float,
    quiet: bool,
) -> SloAnswer:
    """Answer for the running server, then search; an interrupted search is kept."""
    from latentry.serving.entries.tuning import most_proved_batch

    start = time.monotonic()
    configuration = served_configuration(url, info.name)
    key = {
        "model": info.name,
        "build_digest": info.build_digest,
        "engine_class": info.engine_class,
        "host": platform.node(),
        "cores": os.cpu_count(),
        "latentry": version("latentry"),
        "objective": str(objective),
        "running": configuration,
    }
    state = SearchState.open(out, key)
    console = Console(stderr=True, quiet=quiet, soft_wrap=True, highlight=False)
    no_search = ""
    if budget_s and not is_loopback(host_from_url(url)):
        no_search = (
            f"Only the running server was asked: {url} may be another machine, and what is tried "
            "here would say nothing of it. Search there, with a loopback address."
        )
    elif budget_s and entry is None:
        no_search = (
            f"Only the running server was asked: {repository} does not hold what {url} serves "
            "(--repository)."
        )
    if no_search:
        console.print(no_search)
    try:
        with _progress(None, quiet=quiet) as on_step:
            if state.running is None:
                on_step("the running server")
                with TritonTarget(url, info.name) as target:
                    state.running = find_held_rate(target, objective)
                state.save()
            search = None
            if entry is not None and budget_s and not no_search:
                search = Search(
                    serve=partial(private_target, _COMMAND, repository, info.name, info.build),
                    objective=objective,
                    default=entry.build.serving.model_dump(),
                    most_batch=most_proved_batch(entry),
                    budget_s=budget_s - (time.monotonic() - start),
                    state=state,
                    on_step=on_step,
                )
            found = answer(search, state.running, configuration, objective)
            return found.model_copy(update={"no_search": no_search})
    except KeyboardInterrupt:
        console.print(
            f"interrupted; {len(state.candidates)} candidates are in {state.path}, and the same "
            "command goes on from there"
        )
        raise typer.Exit(EXIT_INTERRUPTED) from None


def _plan(
    concurrency: str,
    rates: str,
    batches: str,
    quick: bool,
    info: ModelInfo,
    before: Profile | None,
) -> SweepPlan:
    sizes = _numbers("--batches", batches) or [float(size) for size in _BATCHES]
    if batches and max(sizes) > info.max_batch_size:
        raise BadRequest(f"--batches {batches}: {info.name} takes 1 to {info.max_batch_size}")
    callers = [int(value) for value in _numbers("--concurrency", concurrency)]
    chosen = _numbers("--rates", rates)
    if before and not chosen:
        # The same rates as before, so that there is something to compare.
        chosen = [point.value for point in before.points if point.kind == "request_rate"]
    fitting = [int(size) for size in sizes if size <= info.max_batch_size]
    if quick:
        callers, fitting = callers[::2], fitting[::3]
    return SweepPlan(
        concurrencies=tuple(callers),
        rates=tuple(chosen),
        batches=tuple(fitting),
        shares=(0.5, 0.8) if quick else SHARES,
        extras=not quick,
    )


def _numbers(option: str, text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        values = [0.0]
    whole = option == "--rates" or all(value == int(value) for value in values)
    if not whole or any(value <= 0 for value in values):
        raise WrongUsage(f"{option} {text!r} is not understood; write numbers above 0: 1,8,32")
    return values


def _header(info: ModelInfo, url: str, *, with_perf_analyzer: bool) -> dict[str, Any]:
    from latentry.profiling.perf_analyzer.program import find_perf_analyzer

    tool = find_perf_analyzer() if with_perf_analyzer else None
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    busy = f"the machine was busy before the start (load {load:.1f} on {cores} cores): figures are"
    return {
        "created": time_now(),
        "versions": {
            "latentry": version("latentry"),
            **({"perf_analyzer": tool.version()} if tool else {}),
            "python": platform.python_version(),
        },
        "machine": {"cores": cores, "load": round(load, 2), "system": platform.system()},
        **json_from_info(info),
        "configuration": served_configuration(url, info.name),
        "notes": (f"{busy} worse than they need be",) if load > _BUSY_LOAD * cores else (),
    }


def _show(profile: Profile) -> None:
    # Rather a line that is too long than a number in two halves.
    width = max(Console().width, _LEAST_WIDTH)
    console = Console(soft_wrap=True, highlight=False, width=width)
    kinds = ("concurrency", "request_rate", "batch")
    tables = [point_rows(profile.points, kind, short=True) for kind in kinds]
    if profile.slo and profile.slo.candidates:
        tables.append(candidate_rows(profile.slo))
    if profile.baseline:
        heading, rows = change_rows(profile.baseline)
        tables.append((heading, [row for row in rows if row[-1] in ("better", "worse")]))
    for heading, rows in tables:
        if rows:
            table = Table(box=None)
            for name in heading:
                table.add_column(name, justify="right", no_wrap=True)
            for row in rows:
                table.add_row(*row)
            console.print(table, "")
    for line in missing_figures(profile.points):
        console.print(f"[dim]-: {line}[/]")
    for line in [*failed_requests(profile), *profile.notes, *answers(profile)]:
        console.print(line, markup=False)


@contextmanager
def _progress(total: int | None, *, quiet: bool) -> Iterator[OnStep]:
    """Show on standard error what is being measured."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), disable=quiet) as progress:
        task = progress.add_task("", total=total)
        done = -1

        def on_step(text: str) -> None:
            nonlocal done
            done += 1
            progress.update(task, description=text, completed=done)

        yield on_step
        progress.update(task, completed=done + 1)
