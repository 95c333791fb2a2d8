"""crmbackup monitor."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from crmbackup.cli.render import printable

if TYPE_CHECKING:
    from crmbackup.cli.wiring import Wiring
    from crmbackup.operations.drills import Drills
    from crmbackup.operations.monitoring import Judgement, Number
    from crmbackup.policy.loader import LoadedPolicy
    from crmbackup.repository.edges import Edges

NAME = "CRMBACKUP"
UNKNOWN = 3


class _Plugin(click.Command):
    """A command whose wrong use is UNKNOWN: 2, as elsewhere, would say that the backups are bad."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: Any
    ) -> click.Context:
        try:
            return super().make_context(info_name, args, parent, **extra)
        except click.UsageError as error:
            click.echo(f"{NAME} UNKNOWN - {_plain(error.format_message())}")
            raise click.exceptions.Exit(UNKNOWN) from error


@click.command("monitor", cls=_Plugin)
@click.argument("policies", metavar="[POLICY]...", nargs=-1)
@click.option("--metrics", is_flag=True, help="Also bring the policies' Prometheus textfiles up to date.")
@click.option(
    "--timeout",
    type=click.IntRange(min=1),
    default=50,
    show_default=True,
    metavar="SECONDS",
    help="After this long the answer is UNKNOWN.",
)
def command(policies: tuple[str, ...], metrics: bool, timeout: int) -> None:
    """Judge backups for a monitoring system, in the form of Nagios plugins.

    Prints one line and ends with 0 (OK), 1 (WARNING), 2 (CRITICAL) or 3 (UNKNOWN). The newest and the oldest snapshot
    and the signed records of drills are read from the repository; no key is needed. Of checks it knows this host's. Without POLICY all policies are
    judged. Thresholds are objectives.rpo (CRITICAL at twice that) and the schedule of drills.
    """
    line, code = _answer(policies, metrics=metrics, timeout=timeout)
    click.echo(line)
    click.get_current_context().exit(code)


def _answer(policies: Sequence[str], *, metrics: bool, timeout: int) -> tuple[str, int]:
    """The line and the exit code. Raises nothing."""
    from crmbackup.cli.failures import explain

    try:
        with _limit(timeout):
            from crmbackup.cli.wiring import wiring
            from crmbackup.policy.find import list_policies, policy_directories

            host = wiring()
            names = policies or [str(path) for path in list_policies(policy_directories(host.cwd))]
            if not names:
                return f"{NAME} UNKNOWN - there are no policies", UNKNOWN
            return _line([_judged(host, name, metrics=metrics) for name in names])
    except Exception as error:  # noqa: BLE001 - a plugin answers in one line, whatever happens
        return f"{NAME} UNKNOWN - {_plain(str(explain(error)))}", UNKNOWN


class _Late(BaseException):
    """The time is over. No handler of errors on the way may keep it."""


@contextmanager
def _limit(seconds: int) -> Iterator[None]:
    """Give up after that many seconds, wherever we are."""
    from crmbackup.core.errors import StorageUnavailable

    def late(_number: int, _frame: FrameType | None) -> None:
        raise _Late

    before = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    except _Late:
        raise StorageUnavailable(f"no answer within {seconds} s") from None
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _judged(host: Wiring, name: str, *, metrics: bool) -> Judgement:
    """One policy; what prevents an answer is an answer too. Raises nothing but what stops everything."""
    from crmbackup.cli.failures import explain
    from crmbackup.cli.policies import refuse_namesake
    from crmbackup.core.errors import Interrupted, RepositoryError
    from crmbackup.operations.checked import read_checks
    from crmbackup.operations.drills import AHEAD, read_drills
    from crmbackup.operations.monitoring import Judgement, State, judge
    from crmbackup.repository.edges import read_edges

    shown = name.rpartition("/")[2].rpartition(".")[0] or name
    try:
        loaded = host.load(name)
        refuse_namesake(host.cwd, loaded)
        shown = loaded.policy.name
        repository = host.open_keyless(host.policy_place(loaded))
        now = host.clock.now()
        edges = read_edges(repository, shown, now + AHEAD)
        drills = read_drills(repository, shown, now)
        checks = read_checks(host.paths.state, repository.document.repository_id, shown)
        found = judge(loaded.policy, edges, drills, repository.document.created, now, checks)
        if metrics:
            _write_metrics(host, loaded, edges, drills)
        return found
    except Interrupted:
        raise
    except RepositoryError as error:
        # There is no repository any more, or not the right one: not our trouble, but theirs.
        return Judgement(shown, State.CRITICAL, [str(error)])
    except Exception as error:  # noqa: BLE001 - as above
        return Judgement(shown, State.UNKNOWN, [str(explain(error))])


def _write_metrics(host: Wiring, loaded: LoadedPolicy, edges: Edges, drills: Drills) -> None:
    from crmbackup.cli.telling import describe, ledgers, path_of, write_metrics

    with ledgers(host).opened(loaded.policy.name, path_of(loaded)) as ledger:
        describe(ledger, loaded.policy)
        facts = {"snapshots": float(edges.count)}
        if edges.newest and edges.oldest:
            facts |= {
                "captured": edges.newest.captured.timestamp(),
                "oldest": edges.oldest.captured.timestamp(),
                "snapshot_bytes": float(edges.newest.source_size),
                "added_bytes": float(edges.newest.added_size),
            }
        if drills.passed:
            facts["drilled"] = drills.passed.started.timestamp()
        if drills.newest and drills.newest.rto is not None:
            facts["drill_rto"] = drills.newest.rto
        ledger.facts |= facts
    write_metrics(host, ledger.textfile)


def _line(found: Sequence[Judgement]) -> tuple[str, int]:
    from crmbackup.operations.monitoring import SEVERITY, worst

    state = worst([each.state for each in found])
    parts = []
    for each in sorted(found, key=lambda each: -SEVERITY.index(each.state)):
        mark = "" if each.state is state else f"{each.state.name} "
        parts.append(f"{mark if len(found) > 1 else ''}{each.policy} {', '.join(map(_plain, each.texts))}")
    many = len(found) > 1
    numbers = [_number(number, f"{each.policy}_" if many else "") for each in found for number in each.numbers]
    performance = f" | {' '.join(numbers)}" if numbers else ""
    return f"{NAME} {state.name} - {'; '.join(parts)}{performance}", int(state)


def _number(number: Number, prefix: str) -> str:
    limits = ["" if limit is None else f"{limit:.0f}" for limit in (number.warning, number.critical)]
    return f"'{prefix}{number.label}'={number.value:.0f}{number.unit};{';'.join(limits)};0;"


def _plain(text: str) -> str:
    """In one line, and without the sign that performance data begins with."""
    return printable(" ".join(text.split())).replace("|", "/")
