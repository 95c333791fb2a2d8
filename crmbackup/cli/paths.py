"""Where this host keeps its own files.

Two directories, because they are lost differently: `config` holds the host's signing key and what it knows of its
repositories, and is worth a copy; `state` can be lost at any time at the cost of one full snapshot.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from crmbackup.core.errors import UsageError


@dataclass(frozen=True)
class HostPaths:
    """The two directories."""

    config: Path
    state: Path

    @property
    def host_key(self) -> Path:
        """The signing key of this host."""
        return self.config / "host.key"

    @property
    def pins(self) -> Path:
        """What this host knows of its repositories."""
        return self.config / "repositories"

    @property
    def storages(self) -> Path:
        """What storages were seen to do."""
        return self.state / "storages"

    @property
    def reports(self) -> Path:
        """Drill reports, unless the policy says otherwise."""
        return self.state / "reports"

    @property
    def catalog(self) -> Path:
        """The catalog, unless the policy says otherwise."""
        return self.state / "catalog.db"

    @property
    def catalog_inbox(self) -> Path:
        """What that catalog has yet to take up."""
        return self.state / "catalog.inbox"

    @property
    def health(self) -> Path:
        """What is known of the last runs of each policy."""
        return self.state / "health"

    @property
    def audit(self) -> Path:
        """The audit log."""
        return self.state / "audit.log"


def host_paths(environ: Mapping[str, str], *, root: bool) -> HostPaths:
    """For root the system's directories, else the user's. Raises UsageError when neither can be told."""
    home = environ.get("HOME", "")

    def choose(variable: str, system: str, xdg: str, default: str) -> Path:
        if environ.get(variable):
            return Path(environ[variable]).absolute()
        if root:
            return Path(system)
        if environ.get(xdg):
            return Path(environ[xdg]).absolute() / "crmbackup"
        if home:
            return Path(home) / default / "crmbackup"
        raise UsageError(
            "it is unclear where to keep crmbackup's own files",
            why="HOME is not set, and this user has no home",
            hint=f"set {variable}",
        )

    return HostPaths(
        choose("CRMBACKUP_CONFIG_DIR", "/etc/crmbackup", "XDG_CONFIG_HOME", ".config"),
        choose("CRMBACKUP_STATE_DIR", "/var/lib/crmbackup", "XDG_STATE_HOME", ".local/state"),
    )


def carried(environ: Mapping[str, str], *, home: str, root: bool) -> dict[str, str]:
    """What a program that cron starts for a user must be told to find the directories that `environ` makes of them."""
    here, there = host_paths({**environ, "HOME": home}, root=root), host_paths({"HOME": home}, root=root)
    pairs = (("CRMBACKUP_CONFIG_DIR", here.config, there.config), ("CRMBACKUP_STATE_DIR", here.state, there.state))
    return {name: str(path) for name, path, usual in pairs if path != usual}
