"""The filter ``duplicates``: samples that are in the shard already."""

from typing import ClassVar, Literal

from latentry.synthesis.filters.judging import Candidates, Filter, JudgeOptions


class DuplicatesOptions(JudgeOptions):
    """Reject samples that are in the shard already, to the bit."""

    needs_picture: ClassVar[bool] = False

    kind: Literal["duplicates"]

    def load(self) -> Filter:
        """Return the filter."""
        return _Duplicates()


class _Duplicates:
    def judge(self, candidates: Candidates) -> list[str | None]:
        reasons: list[str | None] = []
        for sha256 in candidates.sha256:
            reasons.append("duplicate" if sha256 in candidates.seen else None)
            candidates.seen.add(sha256)
        return reasons
