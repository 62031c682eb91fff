"""The comparison: tunes every peer, measures them in turn, and writes the tables."""

import argparse
import json
import os
import platform
import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from peers import environments, networks, tables
from peers.catalogue import CORES, PEERS, ROOT, Peer
from peers.measure import (
    QUICK,
    WINDOWS,
    Windows,
    WrongAnswers,
    check,
    idle,
    offer,
    saturate,
    started,
)
from peers.networks import NETWORKS, Artefacts
from peers.servers import PeerFailed
from peers.tables import Measured, Round

from latentry.serving.runtime.engines.engine_class import vector_level

_OFFERED_SHARE = 0.6
_FAILURES = (PeerFailed, WrongAnswers, OSError)
PAGE = ROOT / "docs" / "peers.md"


@dataclass(frozen=True)
class Plan:
    """What to do.

    Attributes:
        peers: In the order of the tables.
        windows: How long each measurement takes, by network.
        repeats: Rounds; in each every peer is started once, beginning with another one.
        grid: Settings of each peer that are tried, at most.
        logs: Where the servers' output goes.
    """

    peers: Sequence[Peer]
    windows: Mapping[str, Windows]
    repeats: int
    grid: int
    logs: Path


def compare_peers(plan: Plan, artefacts: Artefacts) -> tuple[list[Measured], float]:
    """Measure all peers with one network; return the figures and the offered rate."""
    measured = [tune(peer, plan, artefacts) for peer in plan.peers]
    rate = offered_rate(measured)
    print(f"offered load: {rate:.1f} images/s", flush=True)
    for turn in range(plan.repeats):
        first = turn * len(measured) // plan.repeats
        for one in measured[first:] + measured[:first]:
            if one.failure is None:
                run_round(one, plan, artefacts, rate)
    return measured, rate


def tune(peer: Peer, plan: Plan, artefacts: Artefacts) -> Measured:
    """Try a peer's settings for a moment each, and choose those that draw most."""
    one = Measured(peer)
    windows = plan.windows[artefacts.network.name]
    failure = None
    for settings in peer.grid[: plan.grid]:
        try:
            with started(peer, artefacts, settings, plan.logs) as (server, _):
                answers = check(peer, server.port, artefacts.reference)
                if not answers.right:
                    raise WrongAnswers(f"the images are others: {answers}")
                found = saturate(peer, server, windows.tune, windows.warm_up).images_per_s
        except _FAILURES as error:
            failure = f"{type(error).__name__}: {error}"
            one.tuned.append(None)
            print(f"  {peer.title} {dict(settings)}: {failure}", flush=True)
            continue
        one.tuned.append(found)
        print(f"  {peer.title} {dict(settings)}: {found:.0f} images/s", flush=True)
        if found > one.capacity:
            one.capacity, one.settings, one.answers = found, settings, answers
    if one.answers is None:
        one.failure = failure
    return one


def offered_rate(measured: Sequence[Measured]) -> float:
    """Return 60 % of what the slowest of the peers that batch can do."""
    capacities = [m.capacity for m in measured if m.failure is None and m.peer.kind != "eager"]
    if not capacities:
        raise SystemExit("no peer that batches works; see above")
    return _OFFERED_SHARE * min(capacities)


def run_round(one: Measured, plan: Plan, artefacts: Artefacts, rate: float) -> None:
    """Start a peer with its best settings and measure everything once."""
    windows, peer = plan.windows[artefacts.network.name], one.peer
    try:
        with started(peer, artefacts, one.settings, plan.logs) as (server, _):
            found = Round(
                saturated=saturate(peer, server, windows.saturated, windows.warm_up),
                offered=offer(peer, server, rate, windows.open_seconds(rate), windows.warm_up),
                idle=idle(peer, server, windows.idle),
                memory_bytes=server.memory_bytes(),
            )
    except _FAILURES as error:
        one.failure = f"{type(error).__name__}: {error}"
        print(f"{peer.title}: {one.failure}", flush=True)
        return
    one.rounds.append(found)
    share, others = found.saturated.generator_share, found.saturated.other_cores
    print(
        f"{peer.title}: {tables.saturated(found):.0f} images/s; at {rate:.0f}/s p50 "
        f"{tables.offered_p50(found):.1f} ms, p99 {tables.offered_p99(found):.1f} ms; idle "
        f"{tables.idle_p50(found):.2f} ms; {tables.memory_mib(found):.0f} MiB "
        f"(load generator {share:.1%} of the machine, others {others:.2f} cores)",
        flush=True,
    )


def report(network: networks.Network, measured: Sequence[Measured], rate: float) -> str:
    """Return the page's part on one network."""
    share, others = tables.generator_share(measured)
    millions = network.multiply_adds / 1e6
    return "\n\n".join(
        [
            f"### {network.name}: DCGAN of width {network.width}, {millions:,.0f} M multiply-adds",
            tables.figure_table(measured),
            f"p50 and p99 at {rate:.0f} images/s offered, Poisson. The load generator used at most "
            f"{share:.1%} of the machine, everything else {others:.2f} cores.",
            tables.answer_table(measured),
            tables.verdict_table(measured),
        ]
    )


def main() -> None:
    """Run the comparison."""
    arguments = _arguments()
    # Servers are ended by leaving blocks; SIGTERM has to leave them as Ctrl-C does.
    signal.signal(signal.SIGTERM, _interrupt)
    peers = [peer for peer in PEERS if peer.name in arguments.peers]
    for peer in peers:
        environments.prepare(peer)
    out = arguments.out
    plan = Plan(
        peers=peers,
        windows=QUICK if arguments.quick else WINDOWS,
        repeats=arguments.repeats or (1 if arguments.quick else 3),
        grid=1 if arguments.quick else max(len(peer.grid) for peer in peers),
        logs=out / "logs",
    )
    header = _header()
    print(header, flush=True)
    parts, results = [header], []
    for name in arguments.networks or (["small"] if arguments.quick else list(NETWORKS)):
        network = NETWORKS[name]
        measured, rate = compare_peers(plan, networks.make(network, out / "networks"))
        parts.append(report(network, measured, rate))
        results.append(
            {"network": name, "rate": rate, "peers": [tables.as_json(one) for one in measured]}
        )
        # Written after each network, so that a run which is ended keeps what it has.
        (out / "results.json").write_text(
            json.dumps({"machine": header, "networks": results}, indent=1)
        )
        (out / "tables.md").write_text("\n\n".join(parts) + "\n")
    print("\n\n".join(["", *parts[1:]]))
    if arguments.write_docs:
        tables.replace_between(PAGE, "figures", "\n\n".join(parts))


def _header() -> str:
    pins = {name: pin for peer in PEERS for name, pin in environments.versions(peer).items()}
    pins = {"latentry": version("latentry"), **pins}
    listed = ", ".join(f"{name} {pin}" for name, pin in pins.items())
    return (
        f"{date.today()}; {CORES} cores ({vector_level()}), {platform.system()}, Python "
        f"{platform.python_version()}; {listed}."
    )


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


def _arguments() -> argparse.Namespace:
    names = [peer.name for peer in PEERS]
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peers", type=_names(names), default=names, help="a,b of: %(default)s")
    parser.add_argument("--networks", type=_names(list(NETWORKS)), help="small,heavy")
    parser.add_argument("--quick", action="store_true", help="short, small network, no tuning")
    parser.add_argument("--repeats", type=int, help="rounds; 3 if left out")
    parser.add_argument("--out", type=lambda text: Path(text).resolve(), default="out/peers")
    parser.add_argument("--write-docs", action="store_true", help="write the tables in docs/")
    arguments = parser.parse_args()
    os.makedirs(arguments.out, exist_ok=True)
    return arguments


def _names(known: Sequence[str]) -> Callable[[str], list[str]]:
    def names(text: str) -> list[str]:
        chosen = text.split(",")
        if unknown := [name for name in chosen if name not in known]:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown)}: not among {', '.join(known)}")
        return chosen

    return names
