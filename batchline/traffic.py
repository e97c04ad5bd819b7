"""Which version of a model gets a job: its traffic rule, its aliases, and the canary's share by hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from datetime import datetime

import msgspec

from batchline.model import ModelRecord

SHADOW_TENANT = -1
"""Whose the copies of jobs are: nobody's key speaks for it."""
SHADOW_TTL_S = 3600.0
"""How long a copy waits for a worker; also by how much it ranks behind a client's job."""


class Canary(msgspec.Struct, frozen=True):
    """A version that takes a part of production's jobs."""

    version: int
    percent: float
    """0 to 100."""


class Rule(msgspec.Struct, frozen=True):
    """Who gets the jobs of a model that name no version."""

    production: int
    canary: Canary | None = None
    shadow: int | None = None
    """Gets a copy of each of them, unseen by the client."""
    updated_at: datetime | None = None
    """None: nobody has set a rule, production is the highest version."""

    @property
    def aliases(self) -> dict[str, int]:
        """The names under which its versions may be asked for."""
        named = {"production": self.production, "canary": self.canary and self.canary.version, "shadow": self.shadow}
        return {alias: version for alias, version in named.items() if version is not None}

    def version_for(self, by: bytes | None) -> int:
        """The version of a job.

        Args:
            by: what the job is known by; None for what is not to be shared out, which production takes.
        """
        if self.canary is not None and by is not None and takes_part(by, self.canary.percent):
            return self.canary.version
        return self.production


def takes_part(by: bytes, percent: float) -> bool:
    """Whether what is known by `by` belongs to a part of all.

    A pure function: always the same for the same `by`, and whoever belongs to a part belongs to each larger one.

    Args:
        by: an id or a key.
        percent: the size of the part, 0 (nobody) to 100 (everybody).
    """
    digest = hashlib.blake2b(by, digest_size=8).digest()
    return (int.from_bytes(digest) >> 11) / 2**53 < percent / 100


class Versions:
    """The models of one moment: versions by name, and the rules that were set."""

    def __init__(self, records: Sequence[ModelRecord] = (), rules: Mapping[str, Rule] | None = None) -> None:
        self._records: dict[str, dict[int, ModelRecord]] = {}
        for record in records:
            self._records.setdefault(record.spec.name, {})[int(record.spec.version)] = record
        self._rules = rules or {}

    def names(self) -> list[str]:
        """The names of all models, sorted."""
        return sorted(self._records)

    def of(self, name: str) -> list[ModelRecord]:
        """All versions of a model, the lowest first; empty for an unknown one."""
        found = self._records.get(name, {})
        return [found[number] for number in sorted(found)]

    def rule(self, name: str) -> Rule | None:
        """The rule of a known model: the one that was set, else that the highest version is production."""
        found = self._records.get(name)
        return self._rules.get(name) or Rule(max(found)) if found else None

    def has_rule(self, name: str) -> bool:
        """Whether one was set."""
        return name in self._rules

    def find(self, name: str, version: str | int | None, by: bytes | None = None) -> ModelRecord | None:
        """The record that is meant; None where there is none.

        Args:
            name: of the model.
            version: a number, an alias, or None for what the rule says.
            by: what a job is known by, for the rule; see `Rule.version_for`.
        """
        found = self._records.get(name)
        if not found:
            return None
        if version is None and name not in self._rules:
            return found[max(found)]
        number = self._number(name, version, by)
        return None if number is None else found.get(number)

    def _number(self, name: str, version: str | int | None, by: bytes | None) -> int | None:
        if version is None:
            rule = self.rule(name)
            return rule.version_for(by) if rule else None
        text = str(version)
        return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else self.aliases(name).get(text)

    def shadow(self, name: str, answering: ModelRecord) -> ModelRecord | None:
        """The version that gets a copy of a job that the rule gave to `answering`, if its rows fit there."""
        rule = self._rules.get(name)
        if rule is None or rule.shadow is None:
            return None
        record = self._records.get(name, {}).get(rule.shadow)
        return record if record is not None and takes_the_same(record, answering) else None

    def must_be(self, name: str, version: str | int | None, by: bytes | None = None) -> str:
        """Of a version of a known model that `find` did not find: what it must be, or why the rule's cannot be had."""
        aliases = self.aliases(name)
        if version is None or version in aliases:
            number = self._number(name, version, by)
            return f"means version {number} by the model's traffic rule, which this release cannot read"
        known = ", ".join(str(number) for number in sorted(self._records[name]))
        return f"must be {known}, {', '.join(aliases)}"

    def aliases(self, name: str) -> dict[str, int]:
        """The names that versions of a model go by; empty for an unknown one."""
        rule = self.rule(name)
        return {**rule.aliases, "latest": max(self._records[name])} if rule else {}


def takes_the_same(one: ModelRecord, other: ModelRecord) -> bool:
    """Whether rows that were packed for the one fit the other: texts both, or the same tensors."""
    if one.spec.text is None and other.spec.text is None:
        return one.spec.inputs == other.spec.inputs
    return one.spec.text is not None and other.spec.text is not None
