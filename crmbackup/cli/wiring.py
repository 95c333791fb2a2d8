"""Builds everything a command needs: the only place that reads the environment, resolves secrets and picks classes."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup import __version__
from crmbackup.cli.auditing import Auditor
from crmbackup.cli.engines import Engines
from crmbackup.cli.hostfiles import HostFiles
from crmbackup.cli.paths import HostPaths, host_paths
from crmbackup.core.audit import AuditLog
from crmbackup.core.clock import Clock, SystemClock
from crmbackup.core.errors import (
    HostKeyMissing,
    IdentityMissing,
    NotARecipient,
    SecretUnavailable,
    UntrustedSignature,
    UsageError,
)
from crmbackup.core.secrets import FileRef, Secret, SecretRef, resolve
from crmbackup.operations.shipping import StorageSpec
from crmbackup.repository.identity import Identity
from crmbackup.repository.repository import Pin, Repository, open_wrapped_identity
from crmbackup.repository.signing import REJOIN, SigningKey
from crmbackup.storage.address import Address, Credentials, LocalAddress, format_address, parse_address
from crmbackup.storage.base import Storage

if TYPE_CHECKING:
    from crmbackup.catalog.catalog import Catalog
    from crmbackup.catalog.inbox import Inbox
    from crmbackup.catalog.records import Row
    from crmbackup.policy.loader import LoadedPolicy

#: The parts of the environment that crmbackup itself looks at (boto3 reads AWS_* on its own).
IDENTITY_FILE, PASSPHRASE = "CRMBACKUP_IDENTITY_FILE", "CRMBACKUP_PASSPHRASE"


@dataclass(frozen=True)
class Keys:
    """What the user gave on the command line to open snapshots."""

    identity_file: Path | None = None
    passphrase_file: Path | None = None


@dataclass(frozen=True)
class Place:
    """A repository's address, how to reach it, and the policy that named it, if one did."""

    address: Address
    spec: StorageSpec
    loaded: LoadedPolicy | None

    @property
    def text(self) -> str:
        """The address as one line."""
        return format_address(self.address)

    @property
    def policy_name(self) -> str | None:
        """The policy's name."""
        return self.loaded.policy.name if self.loaded else None


class Wiring:
    """One run's view of this host."""

    def __init__(self, environ: Mapping[str, str], cwd: Path, clock: Clock, purpose: str = "") -> None:
        """purpose: the command that runs, for the audit log."""
        self.environ = environ
        self.cwd = cwd
        self.clock = clock
        self.host = socket.gethostname()
        self.tool = f"crmbackup {__version__}"
        self.paths: HostPaths = host_paths(environ, root=os.geteuid() == 0)
        self.files = HostFiles(self.paths)
        self.engines = Engines(environ, cwd)
        self.auditor = Auditor(AuditLog(self.paths.audit, clock), self.host, self.operator, purpose)

    @property
    def operator(self) -> str | None:
        """Who runs this, as far as the system tells."""
        named = self.environ.get("SUDO_USER") or self.environ.get("LOGNAME") or self.environ.get("USER")
        with contextlib.suppress(KeyError):  # a user without an entry, as in containers
            return named or pwd.getpwuid(os.getuid()).pw_name
        return None

    @property
    def identity_file(self) -> Path | None:
        """The identity that the environment names."""
        return self.cwd / self.environ[IDENTITY_FILE] if self.environ.get(IDENTITY_FILE) else None

    # Policies and places

    def load(self, name: str) -> LoadedPolicy:
        """A policy by file or name. Raises PolicyNotFound, PolicyInvalid."""
        from crmbackup.policy.find import find_policy
        from crmbackup.policy.loader import load_policy

        return load_policy(find_policy(name, cwd=self.cwd))

    def reports(self, loaded: LoadedPolicy) -> Path:
        """Where drill reports of a policy are written."""
        return loaded.policy.drill.reports or self.paths.reports

    def place(self, policy: str | None, address: str | None) -> Place:
        """The repository that a command is about. Raises UsageError unless exactly one of the two says which."""
        if bool(policy) == bool(address):
            raise UsageError(
                "it is unclear which repository is meant",
                why="both a policy and --repository" if policy else "",
                hint="give a POLICY, or --repository ADDRESS",
            )
        if policy:
            return self.policy_place(self.load(policy))
        where = parse_address(self._absolute(str(address)))
        return Place(where, StorageSpec(where, None, self.files.conditional_put(format_address(where))), None)

    def _absolute(self, address: str) -> str:
        """A directory may be given as seen from here; everything else is taken as it is."""
        if "://" in address:
            return address
        relative = address.startswith(("./", "../", "~")) or (self.cwd / address).is_dir()
        return str(self.cwd / Path(address).expanduser()) if relative else address

    def policy_place(self, loaded: LoadedPolicy) -> Place:
        """The repository of a policy."""
        settings, limits = loaded.policy.repository, loaded.policy.limits
        address = settings.address()
        credentials = None
        if settings.access_key_id and settings.secret_access_key:
            token = resolve(settings.session_token, self.environ) if settings.session_token else None
            credentials = Credentials(
                resolve(settings.access_key_id, self.environ), resolve(settings.secret_access_key, self.environ), token
            )
        rate = max(1, limits.upload_rate // limits.jobs) if limits.upload_rate else None
        known = self.files.conditional_put(format_address(address))
        return Place(address, StorageSpec(address, credentials, known, rate, settings.retries), loaded)

    def probed(self, place: Place, *, again: bool = False) -> Place:
        """The same place, its storage's abilities found out if this host has not done so yet."""
        if place.spec.conditional_put is None or again:
            from crmbackup.storage.open import probe_address

            able = probe_address(place.address, place.spec.credentials, clock=self.clock).conditional_put
            self.files.save_conditional_put(place.text, value=able)
            place = replace(place, spec=replace(place.spec, conditional_put=able))
        return place

    # Keys

    def identity(self, place: Place, storage: Storage, keys: Keys, *, ask: bool) -> Identity | None:
        """The identity from the command line, the environment, the policy or the repository; None without any.

        ask: on a terminal, ask for the passphrase when nothing else is there.
        """
        text = self._identity_text(place, keys)
        if text:
            return self._used(place, Identity.from_text(text.reveal()), "identity")
        passphrase = self.passphrase(place, keys)
        if passphrase is None and ask and sys.stdin.isatty() and any(True for _ in storage.list("keys/")):
            passphrase = Secret(click.prompt("Passphrase of the identity", hide_input=True, err=True))
        if passphrase is None:
            return None
        return self._used(place, open_wrapped_identity(storage, passphrase.reveal()), "passphrase")

    def _used(self, place: Place, identity: Identity, by: str) -> Identity:
        """Note in the audit log that the identity was opened, and what for."""
        data = {
            "for": self.auditor.purpose,
            "by": by,
            "recipient": identity.recipient.hex()[:16],
            "repository": place.text,
        }
        self.auditor.record("key-use", place.policy_name, data)
        return identity

    def _identity_text(self, place: Place, keys: Keys) -> Secret | None:
        if keys.identity_file:
            return self._content(keys.identity_file, "--identity-file")
        if keys.passphrase_file:
            return None
        if self.environ.get(IDENTITY_FILE):
            return self._content(Path(self.environ[IDENTITY_FILE]), IDENTITY_FILE)
        return self._from_policy(place.loaded.policy.repository.identity if place.loaded else None)

    def passphrase(self, place: Place, keys: Keys) -> Secret | None:
        """The passphrase from the command line, the environment or the policy; None without any."""
        if keys.passphrase_file:
            return self._content(keys.passphrase_file, "--passphrase-file")
        if self.environ.get(PASSPHRASE):
            return Secret(self.environ[PASSPHRASE])
        return self._from_policy(place.loaded.policy.repository.passphrase if place.loaded else None)

    def _content(self, path: Path, name: str) -> Secret:
        try:
            return resolve(FileRef(str(path)), self.environ)
        except SecretUnavailable as error:
            raise SecretUnavailable(error.what, why=error.why, hint=f"{name} names that file") from error

    def _from_policy(self, reference: SecretRef | None) -> Secret | None:
        return resolve(reference, self.environ) if reference else None

    # Repositories

    def open_reader(self, place: Place, keys: Keys, *, need_identity: bool, ask: bool = True) -> Repository:
        """The repository for reading. Without an identity only what is public can be read."""
        storage = place.spec.open(read_only=True)
        try:
            identity = self.identity(place, storage, keys, ask=ask and need_identity)
        except SecretUnavailable:
            if need_identity:
                raise
            identity = None
        repository = self.opened(storage, identity, self.files.pin(place.text))
        if need_identity and identity is None:
            kept = any(True for _ in storage.list("keys/"))
            raise IdentityMissing(
                "this needs the identity, and none was given",
                why="" if kept else "the repository keeps none",
                hint="give --identity-file or --passphrase-file" if kept else "give --identity-file",
            )
        return repository

    def open_keyless(self, place: Place) -> Repository:
        """The repository for reading what is public. No identity is looked for, whatever the policy names."""
        return self.opened(place.spec.open(read_only=True), None, self.files.pin(place.text))

    def opened(self, storage: Storage, identity: Identity | None, pin: Pin | None = None) -> Repository:
        """The repository, its document verified. Raises NotARecipient for an identity that is another repository's."""
        try:
            return Repository.open(storage, identity=identity, pin=pin)
        except UntrustedSignature as error:
            # Far more often the wrong file was given than the repository was replaced: say which of them it can be.
            if identity is None or Repository.open(storage).document.owner == identity.owner:
                raise
            raise NotARecipient(
                f"the identity is not that of the repository at {storage.location}",
                why="another one owns it",
                hint="give the identity from this repository's recovery sheet; if it is that one, the repository was "
                "replaced: do not use it",
            ) from error

    def open_writer(self, place: Place) -> Repository:
        """The repository for backing up: only with a key of this host, and only the one this host knows."""
        pin, host_key = self.files.pin(place.text), self.files.host_key()
        storage = place.spec.open()
        repository = Repository.open(storage, host_key=host_key, pin=pin)
        if pin is None:
            raise HostKeyMissing(
                f"this host does not know the repository at {storage.location}",
                why="it was not made or joined from here, so nothing tells that it is yours",
                hint=REJOIN,
            )
        repository.require_writer()
        if repository.pin != pin:
            self.files.save_pin(place.text, repository.pin)
        return repository

    def open_keeper(self, place: Place, keys: Keys, *, read_only: bool = False, need_trust: bool = True) -> Repository:
        """The repository for pins and for deleting: needs no key, but something that tells whose repository it is.

        need_trust: this host must have made or joined it, or have the identity: else a thief's repository.json would
        decide whose snapshots count.
        """
        storage = place.spec.open(read_only=read_only)
        pin = self.files.pin(place.text)
        identity = self.identity(place, storage, keys, ask=False) if pin is None and need_trust else None
        repository = self.opened(storage, identity, pin)
        if need_trust and pin is None and identity is None:
            raise HostKeyMissing(
                f"this host does not know the repository at {storage.location}",
                why="nothing here tells that it is yours",
                hint=f"give --identity-file or --passphrase-file, or {REJOIN}",
            )
        return repository

    def author(self, repository: Repository) -> SigningKey:
        """Who signs what this host writes: the host, if the repository lists it, else the owner by the identity."""
        host_key = self.files.host_key()
        if host_key and repository.document.trusts(host_key.public):
            return host_key.public, host_key.sign
        if repository.identity is None:
            raise HostKeyMissing("this host's key is not listed in the repository", hint=REJOIN)
        return repository.identity.owner, repository.identity.owner_key.sign

    # Catalog

    def catalog(self, loaded: LoadedPolicy | None) -> Catalog:
        """The catalog of a policy, or this host's. Raises LocalError."""
        from crmbackup.catalog.catalog import Catalog
        from crmbackup.core.files import make_private_directory

        setting = _catalog_setting(loaded)
        if setting is None:
            make_private_directory(self.paths.catalog.parent)
            catalog = Catalog(f"sqlite:///{self.paths.catalog}")
            try:
                self._inbox().empty(lambda rows: catalog.record(*rows))
            except BaseException:
                catalog.close()
                raise
            return catalog
        return Catalog(setting if isinstance(setting, str) else resolve(setting, self.environ).reveal())

    def record(self, loaded: LoadedPolicy | None, *rows: Row) -> None:
        """Put rows into the catalog of a policy; into this host's at the latest when somebody reads it.

        Raises LocalError, KeyProblem.
        """
        from crmbackup.catalog.inbox import LIMIT

        if _catalog_setting(loaded) is None and self._inbox().add(rows) < LIMIT:
            return
        with contextlib.closing(self.catalog(loaded)) as catalog:
            if _catalog_setting(loaded) is not None:
                catalog.record(*rows)

    def _inbox(self) -> Inbox:
        from crmbackup.catalog.inbox import Inbox

        return Inbox(self.paths.catalog_inbox, self.clock)


def _catalog_setting(loaded: LoadedPolicy | None) -> str | SecretRef | None:
    return loaded.policy.catalog.url if loaded and loaded.policy.catalog else None


def wiring() -> Wiring:
    """For the process at hand."""
    environ = dict(os.environ)
    if not environ.get("HOME"):
        # cron and systemd may start programs without it.
        with contextlib.suppress(KeyError):  # a user without an entry, as in containers
            environ["HOME"] = pwd.getpwuid(os.geteuid()).pw_dir
    try:
        cwd = Path.cwd()
    except OSError as error:
        raise UsageError("the current directory cannot be used", why=error.strerror or "", hint="cd / first") from error
    context = click.get_current_context(silent=True)
    return Wiring(environ, cwd, SystemClock(), context.command_path.partition(" ")[2] if context else "")


def is_local(place: Place) -> bool:
    """Whether the repository is a directory."""
    return isinstance(place.address, LocalAddress)
