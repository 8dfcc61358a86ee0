"""A study that goes on, as its page shows it."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from typing import Any

from jaxft.board.folders import Folder
from jaxft.board.status import MOST_BYTES, Status, StatusReader, stamp_of
from jaxft.board.tail import Tail
from jaxft.errors import UserError
from jaxft.report.page.study_figures import setting_keys
from jaxft.storage.json_files import is_number, read_json_object

FACTS = ("versions", "devices", "host", "system")


class LiveStudy:
    """A study, read again as its files change.

    Args:
        folder: of the study.

    Attributes:
        status: what it was doing when it was last looked at.
        parts: the results of its finished programs.
    """

    def __init__(self, folder: Folder):
        self.folder = folder
        self.status = Status("unknown", {})
        self.parts: list[Mapping[str, Any]] = []
        self._reader, self._tail = StatusReader(folder), Tail(folder.path)
        self._read_parts: dict[str, tuple[Any, Mapping[str, Any]]] = {}

    def refresh(self) -> Any:
        """Read what was written since; return a value that changes with it."""
        self._tail.advance()
        self.status = self._reader.read(list(self._tail.recent))
        stamps = [self._read_part(index) for index in range(self._count())]
        read = (self._read_parts.get(str(index)) for index in range(self._count()))
        self.parts = [part for entry in read if entry is not None for part in [entry[1]]]
        about = stamp_of(self.folder.path / "study.json")
        return self._tail.version, stamps, about, self.status.state

    def about(self) -> dict[str, Any]:
        """Return the content of `study.json`, and while it has no ranking one of what is scored."""
        about = {**dict.fromkeys(FACTS, ""), **self.status.about, "state": self.status.state}
        if not about.get("ranking") and "lower_is_better" in about:
            about["ranking"] = ranking_so_far(about, self.events())
        return about

    def events(self) -> list[dict[str, Any]]:
        """Return its events so far, thinned."""
        return self._tail.events()

    def _count(self) -> int:
        parts = self.status.about.get("parts")
        return len(parts) if isinstance(parts, list) else 0

    def _read_part(self, index: int) -> Any:
        path = self.folder.path / "parts" / f"{index}.json"
        stamp, name = stamp_of(path), str(index)
        if stamp is None:
            self._read_parts.pop(name, None)
        elif self._read_parts.get(name, (None,))[0] != stamp:
            try:
                self._read_parts[name] = stamp, read_json_object(path, MOST_BYTES)
            except (UserError, OSError):
                self._read_parts.pop(name, None)
        return stamp


def ranking_so_far(
    about: Mapping[str, Any], events: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Rank the settings that have been scored, best first, as a finished study ranks all.

    Without intervals, which take a bootstrap; a setting counts once one of its members is scored.

    Args:
        about: the content of `study.json`.
        events: of the study.

    Returns:
        Entries as in the `ranking` of a finished study.
    """
    metric, sign = about["metric"], 1 if about["lower_is_better"] else -1
    keys = setting_keys(about)
    scored: dict[int, list[tuple[int, float]]] = {}
    for event in events:
        if event["kind"] == "eval" and is_number(event.get(metric)):
            scored.setdefault(event.get("member", 0), []).append((event["step"], event[metric]))
    settings: dict[str, list[Mapping[str, Any]]] = {}
    for member in about["members"]:
        own = {key: member["values"][key] for key in keys}
        settings.setdefault(json.dumps(own), []).append(member)
    entries = []
    for members in settings.values():
        own_scores = [scored[one["index"]] for one in members if one["index"] in scored]
        if not own_scores:
            continue
        best = [min(scores, key=lambda pair: sign * pair[1]) for scores in own_scores]
        entries.append(
            {
                "values": {key: members[0]["values"][key] for key in keys},
                "members": [one["index"] for one in members],
                "diverged": 0,
                "step": best[0][0],
                "best": _mean([score for _, score in best]),
                "last": _mean([scores[-1][1] for scores in own_scores]),
            }
        )
    return sorted(entries, key=lambda entry: sign * entry["best"]["mean"])


def _mean(scores: Sequence[float]) -> dict[str, float | None]:
    mean = math.fsum(scores) / len(scores)
    return {"mean": mean, "deviation": None, "low": None, "high": None}
