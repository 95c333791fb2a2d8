"""crmbackup status."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from crmbackup.cli.options import output_options, policies_argument
from crmbackup.cli.render import alarm, fits, make_show, size, table

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Wiring
    from crmbackup.core.errors import CrmBackupError
    from crmbackup.operations.checked import Checked
    from crmbackup.operations.status import Facts, Standing
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.repository.records import DrillRecord

#: Repositories that are asked at the same time. One that does not answer is asked no more often than this.
_AT_ONCE, _TRIES = 8, 2
_COLUMNS = (
    *(("Policy", False), ("State", False), ("Age", True), ("RPO", True), ("Size", True), ("Trend", True)),
    *(("Next", True), ("Drill", False), ("Check", False)),
)
#: Those columns that fit a narrower terminal.
_MEDIUM, _NARROW = (0, 1, 2, 3, 6, 7), (0, 1, 2, 6)


@click.command("status")
@policies_argument
@output_options
def command(policies: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Show on one screen how the named policies stand, or all there are.

    What counts is what lies in the repository, from whatever host, not what this host remembers: the newest good
    snapshot and its age, the source's size and its change over the last ten snapshots, the next run and the last drill.
    Of checks it shows the last one of this host. Needs no key. The exit code is 14 when anything needs attention.
    """
    from crmbackup.cli.policies import policy_files
    from crmbackup.cli.wiring import wiring
    from crmbackup.core.errors import AttentionNeeded
    from crmbackup.operations.status import Standing

    with make_show(as_json=as_json, verbose=verbose) as show:
        host = wiring()
        found = _side_by_side(host, policy_files(host.cwd, policies))
        for name, each in found:
            show.result("status", _data(each) if isinstance(each, Standing) else _broken(name, each), lambda: None)
        if not as_json:
            _text(found)
        bad = [name for name, each in found if not isinstance(each, Standing) or each.concerns]
        if bad:
            raise AttentionNeeded(
                f"{len(bad)} of {len(found)} policies need attention"
                if len(found) > 1
                else "the policy needs attention",
                why=", ".join(bad),
                hint="`crmbackup doctor` looks for causes",
            )


Found = tuple[str, "Standing | CrmBackupError"]


def _side_by_side(host: Wiring, paths: Sequence[Path]) -> list[Found]:
    """How each policy stands, or why it cannot be loaded."""
    from crmbackup.cli.failures import explain

    found: dict[Path, Found] = {}
    left = list(reversed(paths))

    def work() -> None:
        while left:
            try:
                path = left.pop()
            except IndexError:
                return
            try:
                found[path] = _stand(host, path)
            except Exception as error:  # noqa: BLE001 - one policy does not hide the others
                found[path] = (path.stem, explain(error))

    # Not a pool: it would keep Ctrl-C waiting for a storage that does not answer.
    threads = [threading.Thread(target=work, daemon=True) for _ in range(min(_AT_ONCE, len(paths)))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[path] for path in paths]


def _stand(host: Wiring, path: Path) -> Found:
    from crmbackup.cli.policies import load_alone
    from crmbackup.operations.status import judge

    loaded = load_alone(host.cwd, path)
    return loaded.policy.name, judge(_facts(host, loaded))


def _facts(host: Wiring, loaded: LoadedPolicy) -> Facts:
    from crmbackup.cli.policies import schedule_state
    from crmbackup.core.errors import CrmBackupError
    from crmbackup.operations.checked import read_checks
    from crmbackup.operations.drills import read_drills
    from crmbackup.operations.status import Facts
    from crmbackup.policy.find import call_of

    state = schedule_state(host, loaded)
    facts = Facts(
        loaded.policy,
        host.clock.now(),
        backup=state.read("backup"),
        check=state.read("check"),
        called=call_of(loaded.path, cwd=host.cwd),
    )
    try:
        place = host.policy_place(loaded)
        place = replace(place, spec=replace(place.spec, attempts=min(_TRIES, place.spec.attempts)))
        storage = place.spec.open(read_only=True)
        try:
            repository = host.opened(storage, None, host.files.pin(place.text))
            listing = repository.snapshots(loaded.policy.name)
            drills = read_drills(repository, loaded.policy.name, facts.now)
        finally:
            storage.close()
    except CrmBackupError as error:
        return replace(facts, problem=error)
    document = repository.document
    return replace(
        facts,
        headers=listing.headers,
        distrusted=listing.problems,
        made=document.created,
        drills=drills,
        checks=read_checks(host.paths.state, document.repository_id, loaded.policy.name),
    )


def _broken(name: str, error: CrmBackupError) -> dict[str, Any]:
    concern = {"code": error.code, "text": str(error), "hint": error.hint}
    return {"policy": name, "ok": False, "concerns": [concern]}


def _data(standing: Standing) -> dict[str, Any]:
    facts, newest = standing.facts, standing.newest
    policy = facts.policy
    rpo = policy.objectives.rpo
    return {
        "policy": policy.name,
        "ok": not standing.concerns,
        "concerns": [vars(each) for each in standing.concerns],
        "repository": policy.repository.url,
        "reachable": facts.problem is None,
        "snapshots": len(facts.headers),
        "newest": {
            "snapshot_id": newest.snapshot_id,
            "kind": newest.kind,
            "captured": newest.captured,
            "host": newest.host,
            "source_size": newest.source_size,
            "added_size": newest.added_size,
        }
        if newest
        else None,
        "age": standing.age.total_seconds() if standing.age else None,
        "rpo": rpo.total_seconds() if rpo else None,
        "growth": standing.growth,
        "sizes": [
            {"captured": header.captured, "source_size": header.source_size, "added_size": header.added_size}
            for header in facts.headers[-10:]
        ],
        "next": {"key": standing.following[0], "at": standing.following[1]} if standing.following else None,
        "drill": _drilled(facts.drills.newest),
        "check": _checked(facts.checks.last),
        "damage": _checked(facts.checks.damage),
    }


def _drilled(drill: DrillRecord | None) -> dict[str, Any] | None:
    if drill is None:
        return None
    names = ("drill_id", "snapshot_id", "started", "host", "passed", "objectives", "rto", "verdict")
    return {name: getattr(drill, name) for name in names}


def _checked(check: Checked | None) -> dict[str, Any] | None:
    return {**vars(check), "passed": check.passed} if check else None


def _text(found: Sequence[Found]) -> None:
    from crmbackup.operations.status import Standing

    rows = [_row(each) if isinstance(each, Standing) else [name, "LOOK", *["?"] * 7] for name, each in found]
    for choice in (range(9), _MEDIUM, _NARROW):
        columns, shown = [_COLUMNS[n] for n in choice], [[row[n] for n in choice] for row in rows]
        if fits(columns, shown):
            break
    table(columns, shown)
    for name, each in found:
        if isinstance(each, Standing):
            for concern in each.concerns:
                alarm(f"{name}: {concern.text}", concern.hint)
        else:
            alarm(f"{name}: {each}", each.hint)


def _row(standing: Standing) -> list[str]:
    facts = standing.facts
    unknown = "?" if facts.problem else "-"
    rpo = facts.policy.objectives.rpo
    now, drill, check = facts.now, facts.drills.newest, facts.checks.damage or facts.checks.last
    return [
        facts.policy.name,
        "LOOK" if standing.concerns else "ok",
        _rough(standing.age) if standing.age is not None else unknown,
        _rough(rpo) if rpo else "-",
        size(standing.newest.source_size) if standing.newest else unknown,
        f"{standing.growth:+.0%}" if standing.growth is not None else unknown,
        _rough(standing.following[1] - now) if standing.following else "-",
        f"{drill.verdict} {_rough(now - drill.started)}" if drill else unknown,
        f"{'ok' if check.passed else 'failed'} {_rough(now - check.started)}" if check else unknown,
    ]


def _rough(span: timedelta) -> str:
    """A span in one unit, in few characters."""
    minutes = span.total_seconds() / 60
    if minutes < 1:
        return "<1 min"
    if minutes < 100:
        return f"{minutes:.0f} min"
    return f"{minutes / 60:.0f} h" if minutes < 48 * 60 else f"{span.days} d"
