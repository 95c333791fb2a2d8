"""What this host remembers of checks, by hand or by schedule: what was looked at last, what was damaged, whose turn is next.

<state>/<repository id>/<policy>/check.json, and ~check.json for checks of a whole repository.

It stays on this host: a check needs no key to sign with and no right to write to the repository.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from crmbackup.core.canonical import canonical_json
from crmbackup.core.clock import from_text, to_text
from crmbackup.core.files import local_error, make_private_directory, write_durably

Part = tuple[int, int]


@dataclass(frozen=True)
class Checked:
    """A check that came to its end. part: (n, t) of the packs' bytes was read, None when none was.

    findings: how many things were wrong; finding: the first of them; packs: names of the packs that were damaged. Those
    are read again by every check until they are whole or nobody needs them.
    """

    started: datetime
    part: Part | None
    findings: int
    finding: str = ""
    packs: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing was wrong."""
        return not self.findings

    @property
    def packs_alone(self) -> bool:
        """Whether nothing but packs was found damaged."""
        return bool(self.packs) and self.findings == len(self.packs)

    def redeems(self, other: Checked) -> bool:
        """Whether this one looked, later, at all that the other one did, and found nothing wrong."""
        deep = other.part is None or self.part in (other.part, (1, 1))
        return self.passed and deep and self.started >= other.started

    @property
    def option(self) -> str:
        """What makes `crmbackup check` look at the same."""
        if self.part is None:
            return ""
        return "--read-data" if self.part == (1, 1) else f"--read-data={self.part[0]}/{self.part[1]}"


@dataclass(frozen=True)
class Checks:
    """last: the last check. damage: one that found something, if none since has found the same in order."""

    last: Checked | None = None
    damage: Checked | None = None


NO_CHECKS = Checks()


class CheckNotes:
    """The notes of one policy, or of a whole repository (policy None). Lost, parts start over with the first."""

    def __init__(self, root: Path, repository_id: str, policy: str | None) -> None:
        # No policy's name has a "~".
        self._path = root / repository_id / (f"{policy}/check.json" if policy else "~check.json")

    def next_part(self, parts: int) -> Part:
        """The part whose turn it is, of `parts`: (n, t), so that in turn all are read. Another number starts over."""
        try:
            fields = self._read()
            part, known = int(fields["next"]), int(fields["parts"])
        except (ValueError, KeyError, TypeError):
            return 1, parts
        return (part, parts) if known == parts and 1 <= part <= parts else (1, parts)

    def checks(self) -> Checks:
        """What is remembered. Raises LocalError."""
        fields = self._read()
        return Checks(_decode(fields.get("last")), _decode(fields.get("damage")))

    def note(self, checked: Checked, *, in_turn: bool) -> None:
        """A check is over. in_turn: its part was the one that was due, and the next one is now. Raises LocalError.

        Whatever part it read, it read the packs of `damaged_packs` again, and names those that still are.
        """
        fields = dict(self._read())
        damage = _decode(fields.get("damage"))
        if not checked.passed:
            damage = checked
        elif damage and (damage.packs_alone or checked.redeems(damage)):
            damage = None
        fields |= {"last": _encode(checked), "damage": _encode(damage) if damage else None}
        if in_turn and checked.part:
            number, parts = checked.part
            fields |= {"next": number % parts + 1, "parts": parts}
        self._write(fields)

    def found_whole(self, packs: Collection[str]) -> None:
        """Others read these packs again, which are whole: what a check of theirs found is over. Raises LocalError."""
        fields = dict(self._read())
        damage = _decode(fields.get("damage"))
        if damage is None or not set(damage.packs) & set(packs):
            return
        left = tuple(pack for pack in damage.packs if pack not in packs)
        damage = replace(damage, packs=left, findings=damage.findings - len(damage.packs) + len(left))
        self._write(fields | {"damage": _encode(damage) if damage.findings else None})

    def _write(self, fields: Mapping[str, object]) -> None:
        make_private_directory(self._path.parent)
        write_durably(self._path, canonical_json(fields) + b"\n")

    def _read(self) -> Mapping[str, Any]:
        """The notes; nothing where there are none, or none that can be read. Raises LocalError."""
        try:
            fields = json.loads(self._path.read_bytes())
        except (FileNotFoundError, ValueError):
            return {}
        except OSError as error:
            raise local_error(error, f"read {self._path}") from error
        return fields if isinstance(fields, dict) else {}


def read_checks(root: Path, repository_id: str, policy: str) -> Checks:
    """What this host knows of checks of a policy; one of the whole repository looked at it too. Raises LocalError."""
    return _both(CheckNotes(root, repository_id, name).checks() for name in (policy, None))


def damaged_packs(root: Path, repository_id: str, policy: str | None) -> frozenset[str]:
    """Names of packs that checks of a policy, or of the whole repository, found damaged. Raises LocalError."""
    damages = (CheckNotes(root, repository_id, name).checks().damage for name in {policy, None})
    return frozenset(pack for damage in damages if damage for pack in damage.packs)


def _both(notes: Iterable[Checks]) -> Checks:
    found = list(notes)
    lasts = [each.last for each in found if each.last]
    damages = [each.damage for each in found if each.damage and not any(last.redeems(each.damage) for last in lasts)]

    def when(checked: Checked) -> datetime:
        return checked.started

    return Checks(max(lasts, key=when, default=None), max(damages, key=when, default=None))


def _encode(checked: Checked) -> dict[str, object]:
    return {
        "started": to_text(checked.started),
        "part": list(checked.part) if checked.part else None,
        "findings": checked.findings,
        "finding": checked.finding,
        "packs": list(checked.packs),
    }


def _decode(fields: Any) -> Checked | None:
    try:
        part = fields["part"] and (int(fields["part"][0]), int(fields["part"][1]))
        packs = tuple(map(str, fields["packs"]))
        return Checked(from_text(fields["started"]), part, int(fields["findings"]), str(fields["finding"]), packs)
    except (ValueError, KeyError, TypeError, IndexError):
        return None
