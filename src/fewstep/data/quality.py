"""Samples that cannot be used: skipped, counted and listed; too many of them stop the run."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from fewstep.checkpoint import atomic
from fewstep.errors import DataError

DEFAULT_LIMIT = 0.01


@dataclass(slots=True)
class BadSamples:
    """The bad samples of one data set of `total` samples.

    A sample is counted once, however often it is met again in later epochs. Filtered samples (too small, too
    low a score) are not bad: they are counted apart and have no limit.

    Attributes:
        total: number of samples of the set, bad ones included.
        limit: highest fraction of bad samples that is accepted, 0 to 1.
        report: file the report is written to before the error is raised; None writes none.
        reasons: key of each bad sample and why it cannot be used.
        filtered: key of each sample that a filter left out and which one.
    """

    total: int
    limit: float = DEFAULT_LIMIT
    report: Path | None = None
    reasons: dict[str, str] = field(default_factory=dict)
    filtered: dict[str, str] = field(default_factory=dict)

    def add(self, key: str, reason: str) -> None:
        """Count one bad sample.

        Raises:
            DataError: more than `limit` of the set is bad.
        """
        self.reasons.setdefault(key, " ".join(reason.split()))
        if len(self.reasons) > self.limit * self.total:
            self.write()
            first, why = next(iter(self.reasons.items()))
            where = f"see {self.report}" if self.report else f"the first is {first}: {why}"
            raise DataError(
                f"{len(self.reasons)} of {self.total} samples cannot be used, more than the limit of "
                f"{self.limit:.2%} ({where}); repair or remove them, or raise the limit"
            )

    def as_json(self) -> dict[str, object]:
        """Return the report as plain JSON values."""
        kinds = Counter(reason.split(":")[0] for reason in self.reasons.values())
        return {
            "total": self.total,
            "bad": len(self.reasons),
            "limit": self.limit,
            "filtered": len(self.filtered),
            "reasons": dict(kinds.most_common()),
            "filters": dict(Counter(self.filtered.values()).most_common()),
            "samples": [{"sample": key, "reason": reason} for key, reason in self.reasons.items()],
        }

    def write(self) -> None:
        """Write the report to `self.report`, when there is one."""
        if self.report is not None:
            atomic.write_text(self.report, json.dumps(self.as_json(), indent=1, ensure_ascii=False) + "\n")
