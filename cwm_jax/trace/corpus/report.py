"""What was kept of a corpus and why the rest was not."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Mapping
from typing import Any

from cwm_jax.trace.corpus.worker import Failure, ItemResult, TracedEpisode

DUPLICATE, NEAR_DUPLICATE, BENCHMARK = "duplicate", "near-duplicate", "benchmark"
_EXAMPLES = 5  # of each reason
_MESSAGE_CHARS = 300  # that are printed
_NO_DIFFICULTY = "none"


@dataclasses.dataclass
class Group:
    """Counts of the episodes that have something in common, or of all.

    Attributes:
        kept, events, bytes: of the records that are in the shards, before compression.
        dropped: number by reason: of episodes, or of items of work where there is no episode.
    """

    kept: int = 0
    events: int = 0
    bytes: int = 0
    dropped: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)

    def keep(self, episode: TracedEpisode) -> None:
        self.kept += 1
        self.events += episode.num_events
        self.bytes += len(episode.record)

    def to_json(self) -> dict[str, Any]:
        return {
            "kept": self.kept,
            "events": self.events,
            "bytes": self.bytes,
            "dropped": dict(sorted(self.dropped.items())),
        }


@dataclasses.dataclass
class CorpusReport:
    """Counts of a corpus; all but ``messages`` are the same in every run.

    Attributes:
        num_items: items of work.
        total: of all of them.
        by_source, by_difficulty: the same, split.
        examples: names of the first few that were dropped, by reason.
        messages: name and message of those.
    """

    num_items: int = 0
    total: Group = dataclasses.field(default_factory=Group)
    by_source: dict[str, Group] = dataclasses.field(default_factory=dict)
    by_difficulty: dict[str, Group] = dataclasses.field(default_factory=dict)
    examples: dict[str, list[str]] = dataclasses.field(default_factory=dict)
    messages: dict[str, list[tuple[str, str]]] = dataclasses.field(default_factory=dict)

    def count_item(self, result: ItemResult) -> None:
        """Counts an item and what failed of it, but not its episodes."""
        self.num_items += 1
        for failure in result.failures:
            self.drop(failure, failure.reason, failure.message)

    def keep(self, episode: TracedEpisode) -> None:
        for group in self._groups(episode):
            group.keep(episode)

    def drop(self, what: TracedEpisode | Failure, reason: str, message: str = "") -> None:
        for group in self._groups(what):
            group.dropped[reason] += 1
        names = self.examples.setdefault(reason, [])
        if len(names) < _EXAMPLES:
            names.append(what.name)
            self.messages.setdefault(reason, []).append((what.name, message))

    def to_json(self) -> dict[str, Any]:
        """For a manifest."""
        return {
            "items": self.num_items,
            "total": self.total.to_json(),
            "by_source": _groups_to_json(self.by_source),
            "by_difficulty": _groups_to_json(self.by_difficulty),
            "examples": self.examples,
        }

    def __str__(self) -> str:
        """A table, the names of what was dropped, and a message for each reason."""
        rows = [("all", self.total)]
        rows += [(f"source {name}", group) for name, group in sorted(self.by_source.items())]
        rows += [(f"difficulty {n}", g) for n, g in sorted(self.by_difficulty.items())]
        lines = [f"{'':24} {'kept':>9} {'dropped':>9} {'events':>12} {'MB':>9}"]
        lines += [
            f"{name:24} {g.kept:9d} {g.dropped.total():9d} {g.events:12d} {g.bytes / 1e6:9.2f}"
            for name, g in rows
        ]
        for reason, count in self.total.dropped.most_common():
            names = ", ".join(self.examples[reason])
            lines.append(f"dropped as {reason}: {count} ({names}{', ...' * (count > _EXAMPLES)})")
            _, message = self.messages[reason][0]
            if message:
                lines.append(f"  such as: {' '.join(message.split())[:_MESSAGE_CHARS]}")
        return "\n".join(lines)

    def _groups(self, what: TracedEpisode | Failure) -> tuple[Group, Group, Group]:
        difficulty = _NO_DIFFICULTY if what.difficulty is None else str(what.difficulty)
        return (
            self.total,
            self.by_source.setdefault(what.source, Group()),
            self.by_difficulty.setdefault(difficulty, Group()),
        )


def _groups_to_json(groups: Mapping[str, Group]) -> dict[str, Any]:
    return {name: group.to_json() for name, group in sorted(groups.items())}
