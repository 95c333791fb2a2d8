"""What this host knows of each policy's runs between them: for metrics, and so that nobody is told the same twice.

One small JSON file for each policy. It may be lost: then a failure that was told is told once more, and metrics begin
anew.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from crmbackup.core.canonical import canonical_json
from crmbackup.core.clock import Clock
from crmbackup.core.files import PRIVATE_FILE, local_error, lock_file, make_private_directory, write_durably

FORMAT = 1


@dataclass
class ActionRecord:
    """The runs of one action. Moments are seconds since the epoch, None when there was none.

    succeeded: the last run that went well. told: receiver -> [moment, error code] of the failure it was told of and
    not yet of its end. warned: receiver -> [moment, codes] of the warnings it was told of.
    """

    attempted: float | None = None
    succeeded: float | None = None
    seconds: float | None = None
    exit_code: int | None = None
    failing_since: float | None = None
    failures: int = 0
    told: dict[str, list[Any]] = field(default_factory=dict)
    warned: dict[str, list[Any]] = field(default_factory=dict)


@dataclass
class Ledger:
    """One policy. database, place: labels of its metrics. textfile: where its metrics go to.

    policy_sha256: of the policy file at the last run. facts: numbers by name, as `notify.metrics` takes them.
    table_rows: table -> rows, where the policy asks for it.
    """

    policy: str
    database: str = ""
    place: str = ""
    textfile: str | None = None
    policy_sha256: str | None = None
    facts: dict[str, float] = field(default_factory=dict)
    table_rows: dict[str, int] = field(default_factory=dict)
    actions: dict[str, ActionRecord] = field(default_factory=dict)

    def action(self, name: str) -> ActionRecord:
        """The record of an action, a new one if it never ran."""
        return self.actions.setdefault(name, ActionRecord())


class Ledgers:
    """The directory of all ledgers of this host."""

    def __init__(self, directory: Path, clock: Clock) -> None:
        self._directory = directory
        self._clock = clock

    @contextmanager
    def opened(self, policy: str, path: Path) -> Iterator[Ledger]:
        """The ledger of the policy file at `path`, to read and change; it is written when the block ends well.

        Other processes wait meanwhile, so keep it short. Raises LocalError.
        """
        with self._locked():
            place = self._directory / self._name(policy, path)
            ledger = _read(place) or Ledger(policy)
            before = _encode(ledger)
            yield ledger
            after = _encode(ledger)
            if after != before:
                write_durably(place, after)

    def sharing(self, textfile: str) -> list[Ledger]:
        """All ledgers whose metrics go to that file."""
        found = (_read(path) for path in sorted(self._directory.glob("*.json")))
        return [ledger for ledger in found if ledger and ledger.textfile == textfile]

    def one(self, policy: str, path: Path) -> Ledger | None:
        """What is known of a policy, without any lock; None when it never ran here."""
        return _read(self._directory / self._name(policy, path))

    @staticmethod
    def _name(policy: str, path: Path) -> str:
        # Two policies of one name may be kept in two places. Names of policies are safe as names of files.
        return f"{policy}-{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}.json"

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private_directory(self._directory)
        path = self._directory / "lock"
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, PRIVATE_FILE)
        except OSError as error:
            raise local_error(error, f"write {path}") from error
        try:
            lock_file(descriptor, path, self._clock)
            yield
        finally:
            os.close(descriptor)


def _encode(ledger: Ledger) -> bytes:
    return canonical_json({"format": FORMAT, **asdict(ledger)}) + b"\n"


def _read(path: Path) -> Ledger | None:
    """None for one that is not there, damaged, or of a newer form."""
    try:
        values: Any = json.loads(path.read_bytes())
        if values.pop("format") != FORMAT:
            return None
        known = {each.name for each in fields(ActionRecord)}
        actions = {
            str(name): ActionRecord(**{key: value for key, value in record.items() if key in known})
            for name, record in values.pop("actions").items()
        }
        known = {each.name for each in fields(Ledger)}
        return Ledger(actions=actions, **{key: value for key, value in values.items() if key in known})
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
