"""crmbackup init."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import key_options, output_options, policy_argument
from crmbackup.cli.render import knows_colours, make_show
from crmbackup.cli.sheet import BLOCKS, Look, Sheet
from crmbackup.core.errors import (
    IdentityMissing,
    LocalError,
    RepositoryExists,
    RepositoryMissing,
    TargetExists,
    UsageError,
)
from crmbackup.core.events import Warned
from crmbackup.core.files import write_durably

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Keys, Place, Wiring
    from crmbackup.core.secrets import Secret
    from crmbackup.repository.identity import Identity
    from crmbackup.repository.repository import Repository
    from crmbackup.storage.base import Storage

NEW_FILE = click.Path(path_type=Path, dir_okay=False)


@click.command("init")
@policy_argument
@click.option("--join", is_flag=True, help="The repository exists: let this host write to it. Needs the identity.")
@click.option("--identity-out", type=NEW_FILE, help="Write the new identity to this new file.")
@click.option("--no-passphrase", is_flag=True, help="Do not keep the identity in the repository at all.")
@click.option("--sheet", type=NEW_FILE, help="Write the recovery sheet, with the identity, to this new file.")
@click.option("--show-identity", is_flag=True, help="Print the identity even where output is no terminal.")
@key_options
@output_options
def command(
    policy: str,
    join: bool,
    identity_out: Path | None,
    no_passphrase: bool,
    sheet: Path | None,
    show_identity: bool,
    identity_file: Path | None,
    passphrase_file: Path | None,
    as_json: bool,
    verbose: bool,
) -> None:
    """Make the policy's repository and print its recovery sheet.

    A new identity is made; it alone opens backups. This host keeps only a key that signs. The identity is kept in the
    repository under a passphrase (asked for, or from the policy or --passphrase-file), in --identity-out, or both.
    A terminal also shows it, as text and as a QR code.
    """
    from crmbackup.cli.wiring import Keys, wiring

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        keys = Keys(identity_file, passphrase_file)
        if join:
            if identity_out or no_passphrase or sheet or show_identity:
                raise UsageError("--join makes no identity", hint="leave out the options that say what to do with one")
            place = host.policy_place(host.load(policy))
            repository, remade = _join(host, place, keys)
            text = f"This host, {host.host}, may now write to {place.text}"
            if remade:
                show.event(Warned("repository-remade", *_REMADE))
            data = {"repository": place.text, "repository_id": repository.document.repository_id, "joined": True}
            show.result("init", data, lambda: click.echo(text))
            return
        if identity_file:
            raise UsageError("init makes a new identity", hint="to use a repository that exists, add --join")
        shown = show_identity or (sys.stdout.isatty() and not as_json)
        want = _Wanted(identity_out, sheet, wrap=not no_passphrase, shown=shown)
        made, text = _create(host, host.policy_place(host.load(policy)), keys, want)
        data = {
            "repository": made.address,
            "repository_id": made.repository_id,
            "kept": list(made.kept),
            **({"identity": made.identity} if made.identity else {}),
        }
        show.result("init", data, lambda: click.echo(text))


@dataclass(frozen=True)
class _Wanted:
    """What is to become of the new identity: written to files, wrapped in the repository, shown."""

    identity_out: Path | None
    sheet: Path | None
    wrap: bool
    shown: bool


#: What is to be known and done then.
_REMADE = (
    "repository.json was gone and is made again; it lists this host alone",
    "run `crmbackup init POLICY --join` on each host that backs up there: until then its snapshots count for nothing",
)


def _join(host: Wiring, place: Place, keys: Keys) -> tuple[Repository, bool]:
    """Let this host write; also gives whether repository.json had to be made again."""
    from crmbackup.repository.manifest import SNAPSHOTS
    from crmbackup.repository.repository import Repository

    reader = place.spec.open(read_only=True)
    identity = host.identity(place, reader, keys, ask=True)
    if identity is None:
        raise IdentityMissing(
            "joining a repository needs its identity", hint="give --identity-file or --passphrase-file"
        )
    # Nothing is written before it is known that it is the right repository, and of a format that we know.
    pin = host.files.pin(place.text)
    try:
        host.opened(reader, identity)
    except RepositoryMissing:
        # Its id and its owner are what this host knows; from the storage alone it could be anybody's.
        if pin is None or pin.owner != identity.owner or not any(True for _ in reader.list(SNAPSHOTS)):
            raise
        storage = host.probed(place, again=True).spec.open()
        made = Repository.remake(storage, identity, host.files.make_host_key(), host.host, pin, host.clock.now())
        host.files.save_pin(place.text, made.pin)
        return made, True
    storage = host.probed(place, again=True).spec.open()
    # What this host pinned before does not matter here: the identity is the root of trust.
    repository = host.opened(storage, identity)
    repository.join(host.files.make_host_key(), host.host, host.clock.now())
    host.files.save_pin(place.text, repository.pin)
    return repository, False


def _create(host: Wiring, place: Place, keys: Keys, want: _Wanted) -> tuple[Sheet, str]:
    """Make identity and repository; gives the sheet and its text for the terminal.

    The identity is in all the places where it will be before the first object is encrypted to it: one that is lost
    must not come into use.
    """
    from crmbackup.cli.wiring import is_local
    from crmbackup.repository.identity import Identity
    from crmbackup.repository.repository import Repository, keep_wrapped_identity
    from crmbackup.storage.open import open_storage

    for path in (want.identity_out, want.sheet):
        if path:
            _refuse_old(path)
    passphrase = _given_passphrase(host, place, keys) if want.wrap else None
    ask = want.wrap and passphrase is None and sys.stdin.isatty()
    if not ask:
        _refuse_loss(want, passphrase)
    if is_local(place):
        open_storage(place.address, clock=host.clock, create=True).close()
    place = host.probed(place, again=True)
    storage = place.spec.open()
    _refuse_second(storage)
    if ask:
        passphrase = _ask_passphrase()
        _refuse_loss(want, passphrase)
    identity = Identity.generate()
    _write_identity(want.identity_out, place, identity)
    _write_identity(want.sheet, place, identity)
    if passphrase:
        keep_wrapped_identity(storage, identity, passphrase.reveal())
    repository = Repository.create(storage, identity, host.files.make_host_key(), host.host, host.clock.now())
    host.files.save_pin(place.text, repository.pin)
    sheet = Sheet(
        policy=place.policy_name or "",
        address=place.text,
        repository_id=repository.document.repository_id,
        made=repository.document.created,
        host=host.host,
        tool=host.tool,
        identity=identity.to_text(),
        file=want.identity_out.absolute() if want.identity_out else None,
        sheet=want.sheet.absolute() if want.sheet else None,
        wrapped=passphrase is not None,
        engine=place.loaded.policy.source.type if place.loaded else "sqlite",
    )
    if want.sheet:
        write_durably(want.sheet, sheet.text().encode("utf-8", "backslashreplace"))
    shown = sheet if want.shown else replace(sheet, identity=None)
    return shown, shown.text(_look())


def _look() -> Look:
    try:
        "".join(BLOCKS.values()).encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return Look.ASCII
    return Look.TERMINAL if knows_colours() else Look.PAPER


def _refuse_old(path: Path) -> None:
    if path.exists():
        raise TargetExists(f"{path} exists already", hint="choose another name: it may hold another identity")
    if not path.parent.is_dir():
        raise LocalError(f"the directory {path.parent} does not exist", hint="create it, or choose another")


def _refuse_loss(want: _Wanted, passphrase: Secret | None) -> None:
    if not (passphrase or want.identity_out or want.sheet or want.shown):
        raise UsageError(
            "the new identity would be lost at once",
            why="it is neither written, nor kept, nor shown",
            hint="add --identity-out FILE, --sheet FILE or --passphrase-file FILE",
        )


def _refuse_second(storage: Storage) -> None:
    from crmbackup.repository.document import KEY
    from crmbackup.repository.manifest import SNAPSHOTS

    if any(info.key == KEY for info in storage.list(KEY)):
        raise RepositoryExists(
            f"there is a repository at {storage.location} already",
            hint="to write to it from this host too, run `crmbackup init POLICY --join` with its identity",
        )
    if any(True for _ in storage.list(SNAPSHOTS)):
        raise RepositoryExists(
            f"there are snapshots at {storage.location}, but repository.json is gone",
            why="with another one in its place nobody could restore them",
            hint="bring it back from a copy; else `crmbackup init POLICY --join` with the identity, on a host that backed up "
            "there, makes it again. For a new repository choose another address",
        )


def _given_passphrase(host: Wiring, place: Place, keys: Keys) -> Secret | None:
    found = host.passphrase(place, keys)
    if found:
        _refuse_short(found.reveal())
    return found


def _ask_passphrase() -> Secret | None:
    """None for an empty answer."""
    from crmbackup.core.secrets import Secret

    click.echo(
        "A passphrase lets the repository keep the identity, locked with it: five or six random words.", err=True
    )
    while True:
        text = click.prompt(
            "Passphrase (empty: do not keep it there)",
            default="",
            hide_input=True,
            confirmation_prompt="The same again",
            show_default=False,
            err=True,
        )
        if not text:
            return None
        try:
            _refuse_short(text)
        except UsageError as error:
            click.echo(f"  {error}", err=True)
            continue
        return Secret(text)


def _refuse_short(passphrase: str) -> None:
    from crmbackup.repository.identity import MIN_PASSPHRASE

    if len(passphrase) < MIN_PASSPHRASE:
        raise UsageError(
            "the passphrase is too short",
            why=f"it has fewer than {MIN_PASSPHRASE} characters",
            hint="take five or six random words",
        )


def _write_identity(path: Path | None, place: Place, identity: Identity) -> None:
    if path:
        write_durably(path, f"# crmbackup identity for {place.text}\n{identity.to_text()}\n".encode())
