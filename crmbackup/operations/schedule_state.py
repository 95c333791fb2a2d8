"""What a host remembers of scheduled runs.

<state>/schedule/<policy>-<hash of the repository's address>/
backup.json, ...   one Record for each action
backup.lock, ...   held by the process that runs a lane

If it is lost, every action waits for its next time: what was missed meanwhile is not caught up.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from crmbackup.core.clock import from_text, to_text
from crmbackup.core.files import local_error, make_private_directory, write_durably
from crmbackup.operations.locks import locked
from crmbackup.policy.due import ACTIONS, Record

#: A record that cannot be read served nothing: one run too many is better than one too few.
_NEVER = datetime(1970, 1, 1, tzinfo=UTC)
_DAMAGED = Record(served=dict.fromkeys((key for keys in ACTIONS.values() for key in keys), _NEVER))


class ScheduleState:
    """The records of one policy on one repository. address: of the repository; the same policy may have two."""

    def __init__(self, root: Path, policy: str, address: str) -> None:
        # The name of a policy file may hold any bytes.
        digest = hashlib.sha256(address.encode("utf-8", "surrogateescape")).hexdigest()
        self.directory = root / "schedule" / f"{policy}-{digest[:8]}"

    def locked(self, lane: str) -> AbstractContextManager[None]:
        """Keep other processes out of a lane. Raises Locked, LocalError."""
        return locked(self.directory / f"{lane}.lock", "another `crmbackup run`")

    def read(self, action: str) -> Record | None:
        """What is remembered of an action; None when it was never seen. Raises LocalError."""
        path = self._path(action)
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise local_error(error, f"read {path}") from error
        try:
            return _decode(json.loads(data))
        except (ValueError, KeyError, TypeError, AttributeError):
            return _DAMAGED

    def write(self, action: str, record: Record) -> None:
        """Remember it. Raises LocalError."""
        make_private_directory(self.directory)
        write_durably(self._path(action), json.dumps(_encode(record)).encode("ascii") + b"\n")

    def forget(self, action: str) -> None:
        """Remember nothing of an action. Raises LocalError."""
        path = self._path(action)
        try:
            path.unlink(missing_ok=True)
        except OSError as error:
            raise local_error(error, f"remove {path}") from error

    def _path(self, action: str) -> Path:
        return self.directory / f"{action}.json"


def _encode(record: Record) -> dict[str, object]:
    return {
        "served": {key: to_text(moment) for key, moment in record.served.items()},
        "started": to_text(record.started) if record.started else None,
        "ended": to_text(record.ended) if record.ended else None,
        "failures": record.failures,
        "exit_code": record.exit_code,
        "error": record.error,
    }


def _decode(fields: Mapping[str, Any]) -> Record:
    return Record(
        served={str(key): from_text(text) for key, text in fields["served"].items()},
        started=from_text(fields["started"]) if fields["started"] else None,
        ended=from_text(fields["ended"]) if fields["ended"] else None,
        failures=int(fields["failures"]),
        exit_code=None if fields["exit_code"] is None else int(fields["exit_code"]),
        error=str(fields["error"]),
    )
