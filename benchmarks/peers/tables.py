"""What was measured, as tables in Markdown, and whether Latentry reaches what it should."""

import ast
import io
import statistics
import tokenize
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from peers.catalogue import Peer
from peers.measure import Answers, Load

_OUTSIDE_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENCODING, tokenize.ENDMARKER,
}  # fmt: skip
# Latencies grow without end above the capacity: where fewer requests are answered than are due,
# percentiles say only how long it was measured.
_LEAST_ANSWERED = 0.9
OURS, BARE, TUTORIAL = "latentry", "triton", "fastapi_tutorial"


@dataclass(frozen=True)
class Round:
    """One start of a peer: saturated, at the offered load, idle, and its memory then."""

    saturated: Load
    offered: Load
    idle: Load
    memory_bytes: int


@dataclass
class Measured:
    """All that was measured of a peer with one network.

    Attributes:
        peer: The peer.
        settings: Those that were used, the best of its grid.
        tuned: Images a second of each of its grid, in its order; None where it failed.
        capacity: Images a second of the best.
        answers: How its images differ.
        rounds: One of each repeat.
        failure: Why there is nothing, or not all.
    """

    peer: Peer
    settings: Mapping[str, str] = field(default_factory=dict)
    tuned: list[float | None] = field(default_factory=list)
    capacity: float = 0.0
    answers: Answers | None = None
    rounds: list[Round] = field(default_factory=list)
    failure: str | None = None

    def values(self, value: Callable[[Round], float]) -> list[float]:
        """Return a figure of every round."""
        return [value(one) for one in self.rounds]


@dataclass(frozen=True)
class Verdict:
    """One of the things that Latentry should reach.

    Attributes:
        text: What.
        value: A ratio, one to which the wanted direction applies.
        wanted: The limit; the value must be at least, or (``most``) at most this.
        most: Whether the limit is an upper one.
    """

    text: str
    value: float
    wanted: float
    most: bool = False

    @property
    def reached(self) -> bool:
        """Whether it is."""
        return self.value <= self.wanted if self.most else self.value >= self.wanted

    def row(self) -> str:
        """Return it as a row of Markdown."""
        sign = "<=" if self.most else ">="
        answer = "reached" if self.reached else "**not reached**"
        return f"| {self.text} | {sign} {self.wanted:g} | {self.value:.2f} | {answer} |"


def saturated(one: Round) -> float:
    """Return images a second with 64 requests under way."""
    return one.saturated.images_per_s


def offered_p50(one: Round) -> float:
    """Return the median latency at the offered load, in milliseconds."""
    return one.offered.percentile(50)


def offered_p99(one: Round) -> float:
    """Return the 99th percentile of the latency at the offered load, in milliseconds."""
    return one.offered.percentile(99)


def idle_p50(one: Round) -> float:
    """Return the median latency of one caller alone, in milliseconds."""
    return one.idle.percentile(50)


def memory_mib(one: Round) -> float:
    """Return the memory of the server's processes in MiB."""
    return one.memory_bytes / 2**20


def keeps_up(one: Round) -> bool:
    """Return whether the offered load was answered."""
    return one.offered.images_per_s >= _LEAST_ANSWERED * one.offered.due_per_s


def ratio(a: Measured, b: Measured, value: Callable[[Round], float]) -> float:
    """Return the median over the rounds of ``a``'s figure over ``b``'s in the same round."""
    pairs = zip(a.values(value), b.values(value), strict=False)
    ratios = [x / y for x, y in pairs]
    return statistics.median(ratios) if ratios else float("nan")


def verdicts(measured: Sequence[Measured]) -> list[Verdict]:
    """Return what Latentry should reach against the peers that were measured."""
    by_name = {one.peer.name: one for one in measured if one.rounds}
    ours = by_name.get(OURS)
    if ours is None:
        return []
    found = []
    for name, other in by_name.items():
        title = other.peer.title
        faster = ratio(ours, other, saturated)
        if name == TUTORIAL:
            found.append(Verdict(f"images/s over {title}", faster, 3.5))
        elif name == BARE:
            found.append(Verdict(f"images/s over {title}", faster, 0.97))
        elif name != OURS and other.peer.kind != "triton":
            found.append(Verdict(f"images/s over {title}", faster, 1.1))
        if name == BARE:
            p99 = ratio(ours, other, offered_p99)
            found.append(Verdict(f"p99 over {title}", p99, 1.1, most=True))
        elif name != OURS and other.peer.kind != "triton" and all(map(keeps_up, other.rounds)):
            p99 = ratio(ours, other, offered_p99)
            found.append(Verdict(f"p99 over {title}", p99, 1.0, most=True))
    return found


def verdict_table(measured: Sequence[Measured]) -> str:
    """Return the verdicts in Markdown."""
    rows = [verdict.row() for verdict in verdicts(measured)]
    return "\n".join(["| Latentry's | wanted | median | |", "|---|---|---|---|", *rows])


def figure_table(measured: Sequence[Measured]) -> str:
    """Return the figures of all peers with one network in Markdown."""
    head = (
        "| | images/s, saturated | over the tutorial's | p50, ms | p99, ms | idle p50, ms | MiB "
        "| lines |\n|---|---|---|---|---|---|---|---|"
    )
    tutorial = next((one for one in measured if one.peer.name == TUTORIAL), None)
    return "\n".join([head, *(_figure_row(one, tutorial) for one in measured)])


def _figure_row(one: Measured, tutorial: Measured | None) -> str:
    lines = user_lines(one.peer)
    if not one.rounds:
        return f"| {one.peer.title} | failed | | | | | | {lines} |"
    over = f"{ratio(one, tutorial, saturated):.1f}x" if tutorial and tutorial.rounds else "-"
    if all(keeps_up(round_) for round_ in one.rounds):
        p50, p99 = span(one.values(offered_p50), 1), span(one.values(offered_p99), 1)
    else:
        p50 = p99 = "does not keep up"
    return (
        f"| {one.peer.title} | {span(one.values(saturated))} | {over} | {p50} | {p99} "
        f"| {span(one.values(idle_p50), 2)} | {statistics.median(one.values(memory_mib)):.0f} "
        f"| {lines} |"
    )


def answer_table(measured: Sequence[Measured]) -> str:
    """Return in Markdown how the answers differ, and the settings that were used."""
    head = "| | differs from the reference | same bytes alone and under load | settings |"
    return "\n".join([head, "|---|---|---|---|", *(_answer_row(one) for one in measured)])


def _answer_row(one: Measured) -> str:
    used = ", ".join(f"{name.lower()} {value}" for name, value in one.settings.items()) or "its own"
    if one.answers is None:
        reason = (one.failure or "not checked").splitlines()[0][:80]
        return f"| {one.peer.title} | {reason} | | {used} |"
    answers = one.answers
    differs = f"{answers.levels} level in {answers.share:.4%}" if answers.levels else "no byte"
    return f"| {one.peer.title} | {differs} | {answers.stable} of {answers.checked} | {used} |"


def span(values: Sequence[float], digits: int = 0) -> str:
    """Return the median and, where there are several values, the range."""
    middle = f"{statistics.median(values):,.{digits}f}"
    if len(values) < 2:
        return middle
    return f"{middle} ({min(values):,.{digits}f} - {max(values):,.{digits}f})"


def generator_share(measured: Sequence[Measured]) -> tuple[float, float]:
    """Return the largest share of the machine that the load generator and that others used."""
    loads = [load for one in measured for r in one.rounds for load in (r.saturated, r.offered)]
    cores = [load.other_cores for load in loads]
    return max((load.generator_share for load in loads), default=0.0), max(cores, default=0.0)


def user_lines(peer: Peer) -> int:
    """Return the lines of code and configuration that a user of ``peer`` writes."""
    return sum(code_lines(path.read_text(), path.suffix) for path in peer.user_files)


def code_lines(text: str, suffix: str) -> int:
    """Return the lines that are neither blank nor comment nor, in Python, docstring."""
    if suffix != ".py":
        lines = (line.strip() for line in text.splitlines())
        return sum(bool(line) and not line.startswith("#") for line in lines)
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, documented) and ast.get_docstring(node) is not None:
            docstrings |= set(range(node.body[0].lineno, (node.body[0].end_lineno or 0) + 1))
    used: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in _OUTSIDE_CODE:
            used |= set(range(token.start[0], token.end[0] + 1))
    return len(used - docstrings)


def as_json(one: Measured) -> dict[str, object]:
    """Return everything as JSON can hold it; latencies as percentiles."""
    return {
        "peer": one.peer.name,
        "title": one.peer.title,
        "lines": user_lines(one.peer),
        "settings": dict(one.settings),
        "tuned": [
            {"settings": dict(tried), "images_per_s": found}
            for tried, found in zip(one.peer.grid, one.tuned, strict=False)
        ],
        "capacity": one.capacity,
        "answers": None if one.answers is None else vars(one.answers),
        "failure": one.failure,
        "rounds": [
            {
                "saturated": _load_json(r.saturated),
                "offered": _load_json(r.offered),
                "idle": _load_json(r.idle),
                "memory_mib": memory_mib(r),
            }
            for r in one.rounds
        ],
    }


def _load_json(load: Load) -> dict[str, object]:
    percentiles = {f"p{p}_ms": load.percentile(p) for p in (50, 90, 95, 99)}
    rest = {name: value for name, value in vars(load).items() if name != "latencies_ms"}
    return {**rest, **percentiles, "answers": int(np.size(load.latencies_ms))}


def replace_between(page: Path, name: str, text: str) -> None:
    """Write ``text`` in a page between the marks ``<!-- name -->`` and ``<!-- end name -->``.

    Raises:
        ValueError: The page has no such marks.
    """
    before, begin, rest = page.read_text().partition(f"<!-- {name} -->\n")
    _, end, after = rest.partition(f"<!-- end {name} -->")
    if not begin or not end:
        raise ValueError(f"{page} has no place for {name}")
    page.write_text(f"{before}{begin}{text}\n{end}{after}")
