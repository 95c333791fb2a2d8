"""What `crmbackup doctor` looks at. Each look gives findings and raises nothing that a user can cause."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from crmbackup.cli.policies import load_alone, secrets_from_environment
from crmbackup.cli.render import plural, size
from crmbackup.cli.waking import installations, scope_installed, wanted_for
from crmbackup.cli.wiring import Keys, Place, Wiring
from crmbackup.core.errors import CrmBackupError, Interrupted
from crmbackup.core.events import discard
from crmbackup.operations.drills import AHEAD
from crmbackup.policy.find import call_of, list_policies, policy_directories
from crmbackup.policy.loader import LoadedPolicy
from crmbackup.storage.open import examine_address

if TYPE_CHECKING:
    from crmbackup.repository.repository import Repository

#: Signatures and leases tolerate some minutes; snapshots are told apart and forgotten by their times.
_SKEW_WARNING, _SKEW_FAIL = 30.0, 300.0
#: State is small: hashes of pages and the catalog.
_STATE_BYTES = 200 * 1024 * 1024
#: A drill needs the database and what sorting and indexes take.
_DRILL_SHARE = 1.3
_DAEMONS = {"crontab": ("cron", "crond"), "cron-d": ("cron", "crond"), "systemd": ("systemd",)}


@dataclass(frozen=True)
class Finding:
    """One fact. mend: the command, or the change, that makes it well."""

    level: Literal["ok", "note", "warning", "fail"]
    area: str
    text: str
    mend: str = ""


def failed(area: str, error: CrmBackupError, mend: str = "") -> Finding:
    """The finding that an error is."""
    return Finding("fail", area, f"{error.code}: {error}", mend or error.hint)


def examine_host(host: Wiring) -> Iterator[Finding]:
    """What does not depend on a policy."""
    yield Finding("ok", "program", host.tool)
    yield from _caught("keys", lambda: _host_key(host))
    yield from _caught("space", lambda: _state(host))
    yield from _caught("schedule", lambda: _installed(host))


def examine_policy(host: Wiring, path: Path) -> Iterator[Finding]:
    """Everything about one policy, as far as one look lets the next one happen."""
    try:
        loaded = load_alone(host.cwd, path)
    except CrmBackupError as error:
        yield failed("policy", error)
        return
    yield Finding("ok", "policy", str(path))
    names = secrets_from_environment(loaded)
    if names and loaded.policy.schedule:
        text = f"secrets come from the environment, which is empty in scheduled runs: {', '.join(names)}"
        yield Finding("warning", "policy", text, "keep them in files: {file: /path}")
    yield from _caught("source", lambda: _source(host, loaded))
    yield from _caught("storage", lambda: _storage(host, loaded))
    yield from _caught("schedule", lambda: _scheduled(host, loaded))


def _caught(area: str, look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    try:
        yield from look()
    except Interrupted:
        raise
    except CrmBackupError as error:
        yield failed(area, error)


def _host_key(host: Wiring) -> Iterator[Finding]:
    path = host.paths.host_key
    if host.files.host_key() is None:
        mend = "`crmbackup init POLICY`, or with --join for a repository that exists"
        yield Finding("fail", "keys", f"this host has no signing key ({path})", mend)
    elif path.stat().st_mode & 0o077:
        yield Finding("warning", "keys", f"others may read the signing key {path}", f"chmod 600 {path}")
    else:
        yield Finding("ok", "keys", f"signing key {path}")


def _state(host: Wiring) -> Iterator[Finding]:
    from crmbackup.core.files import make_private_directory, write_durably

    directory = host.paths.state
    make_private_directory(directory)
    trial = directory / "doctor"
    write_durably(trial, b"")
    trial.unlink()
    free = shutil.disk_usage(directory).free
    text = f"{size(free)} free for state in {directory}"
    if free < _STATE_BYTES:
        yield Finding("fail", "space", text, "free some space, or set CRMBACKUP_STATE_DIR to a larger disk")
    else:
        yield Finding("ok", "space", text)


def _installed(host: Wiring) -> Iterator[Finding]:
    """What wakes crmbackup, and whether it is what the policies call for."""
    found = installations(host)
    for waker, old in found:
        if wanted_for(waker, scope_installed(old), discard) != old:
            mend = f"`crmbackup schedule diff` shows it, `crmbackup schedule install --{waker.kind}` mends it"
            yield Finding("fail", "schedule", f"{waker.place} is not what the policies call for", mend)
        elif not _at_work(_DAEMONS[waker.kind]):
            daemon = _DAEMONS[waker.kind][0]
            yield Finding(
                "fail",
                "schedule",
                f"{waker.place} is there, but no {daemon} is running",
                f"systemctl enable --now {daemon}"
                if daemon != "systemd"
                else f"`crmbackup schedule remove --{waker.kind}`, and install with --cron-d or --crontab",
            )
        else:
            yield Finding("ok", "schedule", f"woken by {waker.place}")
    if len(found) > 1:
        mend = f"`crmbackup schedule remove --{found[-1][0].kind}`"
        yield Finding("warning", "schedule", "crmbackup is woken from two places", mend)


def _at_work(names: tuple[str, ...]) -> bool:
    """Whether a program of such a name runs, as far as /proc shows."""
    processes = list(Path("/proc").glob("[0-9]*/comm"))
    if not processes:
        return True  # nothing can be told here
    for path in processes:
        try:
            if path.read_text("utf-8", "replace").strip() in names:
                return True
        except OSError:
            continue
    return False


def _source(host: Wiring, loaded: LoadedPolicy) -> Iterator[Finding]:
    source = host.engines.source(loaded, bytes(32))
    source.preflight(loaded.policy.limits.jobs)
    yield Finding("ok", "source", "it can be read, with all its tables")
    schedule, drill = loaded.policy.schedule, loaded.policy.drill
    drills = bool(schedule and schedule.drill) and drill.target == "ephemeral"
    try:
        for text in source.programs(drills=drills):
            yield Finding("ok", "programs", text)
    except CrmBackupError as error:
        yield failed("programs", error)


def _storage(host: Wiring, loaded: LoadedPolicy) -> Iterator[Finding]:
    place = host.policy_place(loaded)
    call = call_of(loaded.path, cwd=host.cwd)
    with closing(place.spec.open(read_only=True)) as storage:
        pin = host.files.pin(place.text)
        repository = host.opened(storage, None, pin)
        listing = repository.snapshots(loaded.policy.name)
        yield Finding("ok", "storage", f"{place.text} is reached, {plural(len(listing.headers), 'snapshot')}")
        for problem in listing.problems:
            yield failed(
                "storage", problem, f"`crmbackup check {call}` names what is damaged; bring it back from a copy"
            )
        ahead = [header for header in listing.headers if header.captured > host.clock.now() + AHEAD]
        if ahead:
            text = f"snapshot {ahead[-1].snapshot_id} is dated in the future, {ahead[-1].captured:%Y-%m-%d %H:%M} UTC"
            mend = f"set the clock of this host or of {ahead[-1].host} right, then `crmbackup forget {call} --future`"
            yield Finding("warning", "clock", text, mend)
        join = f"`crmbackup init {call} --join` with the identity"
        key = host.files.host_key()
        if pin is None:
            yield Finding(
                "fail", "keys", "this host does not know the repository: nothing tells that it is yours", join
            )
        elif key is None or not repository.document.trusts(key.public):
            yield Finding("fail", "keys", "this host's key is not listed in the repository", join)
        else:
            yield Finding("ok", "keys", "this host's key is listed in the repository")
        yield from _caught("keys", lambda: _identity(host, loaded, place, repository))
    newest = listing.headers[-1] if listing.headers else None
    yield from _rights(host, loaded, place)
    if loaded.policy.schedule and loaded.policy.schedule.drill and newest:
        yield from _drill_space(loaded, newest.source_size)


def _identity(host: Wiring, loaded: LoadedPolicy, place: Place, repository: Repository) -> Iterator[Finding]:
    drills = bool(loaded.policy.schedule and loaded.policy.schedule.drill)
    identity = host.identity(place, repository.storage, Keys(), ask=False)
    if identity is None and drills:
        mend = "name it in the policy: repository.identity or repository.passphrase; or leave schedule.drill to another host"
        yield Finding("fail", "keys", "drills are scheduled, and scheduled runs have no identity", mend)
    elif identity is not None:
        host.opened(repository.storage, identity, host.files.pin(place.text))
        text = "the identity is at hand, and it is the repository's"
        if drills:
            yield Finding("ok", "keys", text)
        else:
            yield Finding(
                "note",
                "keys",
                f"{text}: whoever takes this host can read its backups",
                "only drills and restores need it",
            )


def _rights(host: Wiring, loaded: LoadedPolicy, place: Place) -> Iterator[Finding]:
    """Clock, deleting, object lock, conditional put."""
    name = "doctor-" + hashlib.sha256(host.host.encode("utf-8")).hexdigest()[:16]
    seen = examine_address(place.address, place.spec.credentials, name=name, clock=host.clock)
    skew = abs(seen.skew)
    text = f"this host's clock and the storage's differ by {skew:.0f} s"
    level: Literal["ok", "warning", "fail"] = (
        "fail" if skew > _SKEW_FAIL else "warning" if skew > _SKEW_WARNING else "ok"
    )
    yield Finding(level, "clock", text, "" if level == "ok" else "set the clock: `timedatectl set-ntp true`")
    prunes = bool(loaded.policy.schedule and loaded.policy.schedule.prune)
    if not seen.may_delete:
        yield Finding(
            "fail" if prunes else "ok",
            "storage",
            "this host may write, and may not delete",
            _NEEDS_DELETE if prunes else "",
        )
    elif seen.object_lock is None:
        yield Finding(
            "note",
            "storage",
            "a directory: whoever takes this host can delete the backups",
            "keep a second copy elsewhere",
        )
    elif prunes:
        yield Finding(
            "note",
            "storage",
            "this host may delete objects, which schedule.prune needs",
            "better prune from another host",
        )
    else:
        yield Finding(
            "warning",
            "storage",
            "this host may delete objects, and need not",
            "take the right s3:DeleteObject from its key",
        )
    if seen.object_lock is not None:
        yield Finding("note", "storage", f"object lock: {seen.object_lock}")
    able = host.files.conditional_put(place.text)
    if able is not None:
        text = (
            "puts can be conditional"
            if able
            else "puts cannot be conditional here: writers claim names instead, which is slower"
        )
        yield Finding("ok", "storage", text)


_NEEDS_DELETE = "schedule.prune needs the right: give it to this host's key, or prune from another host"


def _drill_space(loaded: LoadedPolicy, source_size: int) -> Iterator[Finding]:
    if loaded.policy.drill.target != "ephemeral":
        return
    directory = loaded.policy.drill.directory or Path(tempfile.gettempdir())
    needed = int(source_size * _DRILL_SHARE)
    try:
        free = shutil.disk_usage(directory).free
    except OSError as error:
        yield Finding("fail", "space", f"drills cannot use {directory}: {error.strerror}", f"mkdir -p {directory}")
        return
    text = f"{size(free)} free for drills in {directory}, about {size(needed)} needed"
    yield (
        Finding("ok", "space", text)
        if free >= needed
        else Finding("fail", "space", text, "set drill.directory to a larger disk")
    )


def _scheduled(host: Wiring, loaded: LoadedPolicy) -> Iterator[Finding]:
    """Whether something that is installed runs this policy."""
    if loaded.policy.schedule is None:
        yield Finding("note", "schedule", "the policy has no schedule: nothing runs by itself")
        return
    found = installations(host)
    if not found:
        mend = "`crmbackup schedule install --systemd` (or --cron-d, --crontab)"
        yield Finding("fail", "schedule", "nothing wakes crmbackup on this host", mend)
    elif not any(_covers(text, loaded) for _, text in found):
        mend = f"`crmbackup schedule install --{found[0][0].kind}` from here, or move the policy to /etc/crmbackup/policies"
        yield Finding("fail", "schedule", "what is installed does not run this policy", mend)
    else:
        yield Finding("ok", "schedule", "the installed schedule runs it")


def _covers(text: str, loaded: LoadedPolicy) -> bool:
    scope = scope_installed(text)
    files = list(scope.policies) or list_policies(policy_directories(scope.directory))
    return loaded.path.resolve() in [path.resolve() for path in files]
