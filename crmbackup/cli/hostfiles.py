"""The files of this host: its key, what it knows of repositories, what storages were seen to do."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from crmbackup.cli.paths import HostPaths
from crmbackup.core.canonical import canonical_json
from crmbackup.core.errors import HostKeyMissing, LocalError
from crmbackup.core.files import local_error, make_private_directory, write_durably
from crmbackup.repository.repository import Pin
from crmbackup.repository.signing import REJOIN, HostKey


def _name(address: str) -> str:
    return hashlib.sha256(address.encode("utf-8")).hexdigest()[:32] + ".json"


class HostFiles:
    """Reads and writes them. Raises LocalError kinds."""

    def __init__(self, paths: HostPaths) -> None:
        self._paths = paths

    def host_key(self) -> HostKey | None:
        """The key of this host, None when it has none."""
        try:
            return HostKey.from_text(self._paths.host_key.read_text("ascii"))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise _unreadable(error, self._paths.host_key) from error
        except HostKeyMissing as error:
            raise HostKeyMissing(
                f"the host key {self._paths.host_key} is damaged", hint=f"remove that file, then {REJOIN}"
            ) from error

    def make_host_key(self) -> HostKey:
        """The key of this host; a new one when it has none."""
        found = self.host_key()
        if found:
            return found
        key = HostKey.generate()
        make_private_directory(self._paths.config)
        write_durably(self._paths.host_key, key.to_text().encode("ascii"))
        return key

    def pin(self, address: str) -> Pin | None:
        """What this host knows of the repository at an address."""
        path = self._paths.pins / _name(address)
        try:
            fields = json.loads(path.read_bytes())
            return Pin(str(fields["repository_id"]), bytes.fromhex(fields["owner"]), int(fields["sequence"]))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _unreadable(error, path) from error

    def save_pin(self, address: str, pin: Pin) -> None:
        """Remember a repository."""
        make_private_directory(self._paths.pins)
        fields = {
            "address": address,
            "repository_id": pin.repository_id,
            "owner": pin.owner.hex(),
            "sequence": pin.sequence,
        }
        write_durably(self._paths.pins / _name(address), canonical_json(fields) + b"\n")

    def conditional_put(self, address: str) -> bool | None:
        """What the storage at an address was seen to do; None when it was not tried from this host."""
        try:
            return bool(json.loads((self._paths.storages / _name(address)).read_bytes())["conditional_put"])
        except (OSError, ValueError, KeyError, TypeError):
            return None  # a cache: it is found out again

    def save_conditional_put(self, address: str, *, value: bool) -> None:
        """Remember it."""
        make_private_directory(self._paths.storages)
        fields = {"address": address, "conditional_put": value}
        write_durably(self._paths.storages / _name(address), canonical_json(fields) + b"\n")


def _unreadable(error: Exception, path: Path) -> LocalError:
    if isinstance(error, OSError):
        return local_error(error, f"read {path}")
    return LocalError(
        f"cannot read {path}", why=f"it is damaged ({error})", hint="restore it, or remove it and join again"
    )
