"""What a search for a better configuration has found so far, kept in a file."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from latentry.contract.errors import BadRequest
from latentry.contract.files import parse_json, read_regular, sweep_temporary, write_atomic
from latentry.contract.strict import Strict
from latentry.profiling.slo.final import Final
from latentry.profiling.slo.held_rate import Holding

_STATE_FILE = "slo-search.json"
_MOST_STATE_BYTES = 64 * 2**20

Serving = dict[str, int]
"""The ``serving`` part of a build."""


class Candidate(Strict):
    """A configuration and what it holds, or why it could not be served."""

    serving: Serving
    holding: Holding | None = None
    failure: str = ""
    seconds: float = 0.0

    @property
    def rate(self) -> float:
        """What it holds; 0 where it holds nothing or could not be served."""
        return self.holding.rate if self.holding else 0.0


@dataclass
class SearchState:
    """What a search has found so far, in a file that is replaced whole after each candidate.

    Candidates that failed are left out when it is read, so that they are tried again.
    """

    path: Path
    key: dict[str, Any]
    running: Holding | None = None
    candidates: list[Candidate] = field(default_factory=list)
    final: Final | None = None
    spent_s: float = 0.0

    @classmethod
    def open(cls, folder: Path, key: dict[str, Any]) -> Self:
        """Return the state in ``folder``, or a new one.

        Raises:
            BadRequest: The folder holds a search for something else, or a damaged one.
        """
        state = cls(folder / _STATE_FILE, key)
        sweep_temporary(folder)
        try:
            saved = parse_json(read_regular(state.path, most=_MOST_STATE_BYTES))
            state.running = Holding.model_validate(saved["running"]) if saved["running"] else None
            known = [Candidate.model_validate(item) for item in saved["candidates"]]
            state.candidates = [item for item in known if item.holding is not None]
            state.final = Final.model_validate(saved["final"]) if saved["final"] else None
            state.spent_s = float(saved["spent_s"])
        except FileNotFoundError:
            return state
        except (ArithmeticError, AttributeError, KeyError, OSError, TypeError, ValueError) as error:
            raise BadRequest(f"{state.path} is not understood; remove it to start anew") from error
        if saved.get("key") != key:
            raise BadRequest(
                f"{folder} holds the search for something else ({saved.get('key')}); give another "
                "folder with --out, or remove it to start anew"
            )
        return state

    def find(self, serving: Serving) -> Candidate | None:
        """Return what is known of a configuration."""
        return next((item for item in self.candidates if item.serving == serving), None)

    def save(self) -> None:
        """Write the file: whole, or as it was."""
        content = {
            "key": self.key,
            "running": self.running.model_dump(mode="json") if self.running else None,
            "candidates": [item.model_dump(mode="json") for item in self.candidates],
            "final": self.final.model_dump(mode="json") if self.final else None,
            "spent_s": self.spent_s,
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(self.path, json.dumps(content).encode())
