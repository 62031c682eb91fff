"""A report against an earlier one."""

from latentry.profiling.estimates import Estimate, discoveries, permutation_p
from latentry.profiling.points import Point
from latentry.profiling.report.contents import Change, Comparison, Profile


def compare(profile: Profile, baseline: Profile) -> Comparison:
    """Compare all throughputs and latency percentiles that both reports have.

    Each by an exact permutation test over the windows, all together at 5 % false discoveries
    (Benjamini and Hochberg 1995). Windows of one run share its minute of the machine: a significant
    difference is one between the two runs, whatever made it.
    """
    known = {(point.kind, point.value): _metrics(point) for point in baseline.points}
    pairs = [
        (point, metric, known[point.kind, point.value][metric], estimate)
        for point in profile.points
        if (point.kind, point.value) in known
        for metric, estimate in _metrics(point).items()
        if metric in known[point.kind, point.value]
    ]
    p_values = [permutation_p(before.windows, after.windows) for *_, before, after in pairs]
    changes = [
        Change(
            kind=point.kind,
            value=point.value,
            metric=metric,
            before=before.value or 0.0,
            after=after.value or 0.0,
            p_value=p_value,
            significant=significant,
        )
        for (point, metric, before, after), p_value, significant in zip(
            pairs, p_values, discoveries(p_values), strict=True
        )
    ]
    names = ("model", "model_digest", "build_digest", "engine_class", "configuration", "versions")
    facts = [(name, getattr(baseline, name), getattr(profile, name)) for name in names]
    facts += [
        (f"machine {name}", baseline.machine.get(name), profile.machine.get(name))
        for name in ("cores", "system")
    ]
    differences = [f"{name}: {old} -> {new}" for name, old, new in facts if old != new]
    return Comparison(
        created=baseline.created, differences=tuple(differences), changes=tuple(changes)
    )


def _metrics(point: Point) -> dict[str, Estimate]:
    found = {"throughput": point.throughput}
    found |= {f"p{percent}": estimate for percent, estimate in point.latency_ms.items()}
    return {name: item for name, item in found.items() if item.value is not None}
