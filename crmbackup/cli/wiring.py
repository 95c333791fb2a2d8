"""Builds everything a command needs: the only place that reads the environment, resolves secrets and picks classes."""

from __future__ import annotations

import contextlib
import os
import pwd
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from crmbackup import __version__
from crmbackup.cli.hostfiles import HostFiles
from crmbackup.cli.paths import HostPaths, host_paths
from crmbackup.core.clock import Clock, SystemClock
from crmbackup.core.errors import (
    CrmBackupError,
    HostKeyMissing,
    IdentityMissing,
    NotARecipient,
    SecretUnavailable,
    UntrustedSignature,
    UsageError,
)
from crmbackup.core.secrets import FileRef, Secret, SecretRef, resolve
from crmbackup.engines.base import RestoreOptions, SourceEngine, Target, TargetEngine
from crmbackup.operations.shipping import StorageSpec
from crmbackup.repository.identity import Identity
from crmbackup.repository.repository import Pin, Repository, open_wrapped_identity
from crmbackup.repository.signing import REJOIN
from crmbackup.storage.address import Address, Credentials, LocalAddress, format_address, parse_address
from crmbackup.storage.base import Storage

if TYPE_CHECKING:
    from crmbackup.catalog.catalog import Catalog
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

    def __init__(self, environ: Mapping[str, str], cwd: Path, clock: Clock) -> None:
        self.environ = environ
        self.cwd = cwd
        self.clock = clock
        self.host = socket.gethostname()
        self.tool = f"crmbackup {__version__}"
        self.paths: HostPaths = host_paths(environ, root=os.geteuid() == 0)
        self.files = HostFiles(self.paths)

    @property
    def operator(self) -> str | None:
        """Who runs this, as far as the system tells."""
        return self.environ.get("SUDO_USER") or self.environ.get("LOGNAME") or self.environ.get("USER") or None

    # Policies and places

    def load(self, name: str) -> LoadedPolicy:
        """A policy by file or name. Raises PolicyNotFound, PolicyInvalid."""
        from crmbackup.policy.find import find_policy
        from crmbackup.policy.loader import load_policy

        return load_policy(find_policy(name, cwd=self.cwd))

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
            return Identity.from_text(text.reveal())
        passphrase = self.passphrase(place, keys)
        if passphrase is None and ask and sys.stdin.isatty() and any(True for _ in storage.list("keys/")):
            import click

            passphrase = Secret(click.prompt("Passphrase of the identity", hide_input=True, err=True))
        return open_wrapped_identity(storage, passphrase.reveal()) if passphrase else None

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

    # Engines and catalog

    def source(self, loaded: LoadedPolicy, key: bytes) -> SourceEngine:
        """The engine for a policy's source. Raises UsageError, SecretUnavailable."""
        settings = loaded.policy.source
        if settings.type == "sqlite":
            from crmbackup.engines.sqlite.engine import SqliteSource
            from crmbackup.engines.sqlite.reader import Source

            source = Source(settings.path, settings.busy_timeout.total_seconds(), settings.encrypted)
            return SqliteSource(source, settings.checksums, key)
        with _driver("postgres"):
            from crmbackup.engines.postgres.connection import parse_server
            from crmbackup.engines.postgres.engine import PostgresSource, Settings

        password = resolve(settings.password, self.environ) if settings.password else None
        return PostgresSource(
            parse_server(settings.url, password),
            Settings(settings.lock_timeout.total_seconds(), settings.passwords, settings.programs),
        )

    def drill_engine(self, name: str, loaded: LoadedPolicy) -> TargetEngine:
        """The engine that rebuilds snapshots of that engine for a drill. Raises UsageError for an unknown one."""
        return self._target_engine(name, loaded, drill=True)

    def target(self, to: str, options: RestoreOptions, loaded: LoadedPolicy | None) -> Target:
        """The database that --to names. Raises UsageError."""
        if is_server(to):
            return self._target_engine("postgres", loaded).target(to, options)
        return self._target_engine("sqlite", loaded).target(str(self.cwd / Path(to).expanduser()), options)

    @staticmethod
    def require_engine(engine: str, to: str) -> None:
        """The snapshot fits what --to names. Raises UsageError."""
        if (engine == "postgres") != is_server(to):
            raise UsageError(
                f"a snapshot of engine {engine} cannot be restored to {to}",
                hint="name a database, such as postgresql://user@host/name"
                if engine == "postgres"
                else "name the file to make",
            )

    def _target_engine(self, name: str, loaded: LoadedPolicy | None, *, drill: bool = False) -> TargetEngine:
        if name == "sqlite":
            from crmbackup.engines.sqlite.target import SqliteTargetEngine

            return SqliteTargetEngine()
        if name != "postgres":
            raise UsageError(f"this crmbackup cannot restore snapshots of engine {name!r}", hint="install a newer one")
        with _driver("postgres"):
            from crmbackup.engines.postgres.connection import parse_server
            from crmbackup.engines.postgres.target import PostgresTargetEngine

        policy = loaded.policy if loaded else None
        source = policy.source if policy and policy.source.type == "postgres" else None
        programs = source.programs if source else None
        if drill and policy and policy.drill.target != "ephemeral":
            reference = policy.drill.target_password
            password = resolve(reference, self.environ) if reference else None
            return PostgresTargetEngine(None, programs, drill_server=parse_server(policy.drill.target, password))
        return PostgresTargetEngine(None, programs)

    def catalog(self, loaded: LoadedPolicy | None) -> Catalog:
        """The catalog of a policy, or this host's. Raises LocalError."""
        from crmbackup.catalog.catalog import Catalog
        from crmbackup.core.files import make_private_directory

        setting = loaded.policy.catalog.url if loaded and loaded.policy.catalog else None
        if setting is None:
            make_private_directory(self.paths.catalog.parent)
            return Catalog(f"sqlite:///{self.paths.catalog}")
        return Catalog(setting if isinstance(setting, str) else resolve(setting, self.environ).reveal())


def is_server(to: str) -> bool:
    """Whether --to names a database of a server, not a file."""
    return to.startswith(("postgresql://", "postgres://"))


@contextlib.contextmanager
def _driver(extra: str) -> Iterator[None]:
    """Importing an engine whose packages this host may lack."""
    try:
        yield
    except ImportError as error:
        raise UsageError(
            f"this host lacks a package for {extra} databases",
            why=str(error),
            hint=f"pip install 'crmbackup[{extra}]'",
        ) from error


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
    return Wiring(environ, cwd, SystemClock())


def is_local(place: Place) -> bool:
    """Whether the repository is a directory."""
    return isinstance(place.address, LocalAddress)


def describe(error: CrmBackupError) -> str:
    """One line for a catalog or a log."""
    return f"{error.code}: {error}"
