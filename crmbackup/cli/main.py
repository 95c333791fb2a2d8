"""The entry point: finds the command, and turns whatever it raises into a message and an exit code."""

from __future__ import annotations

import gc
import importlib
import io
import os
import select
import signal
import sys
from pathlib import Path
from types import FrameType

import click

from crmbackup import __version__
from crmbackup.cli.exit_codes import CLOSED_PIPE, INTERNAL
from crmbackup.core.errors import Interrupted

#: Command -> (module, one line of help). Modules are loaded when their command runs, so that --help is instant.
COMMANDS = {
    "policy": ("policy", "Write, validate and describe policies."),
    "init": ("init", "Make the policy's repository, or let this host join it."),
    "backup": ("backup", "Take a snapshot of the policy's database."),
    "snapshots": ("snapshots", "List snapshots."),
    "show": ("show", "Show one snapshot: tables, rows, checksums, sizes."),
    "restore": ("restore", "Bring a database back."),
    "drill": ("drill", "Restore into an isolated place and prove that it is the snapshot."),
    "check": ("check", "Look whether the repository is whole."),
    "forget": ("forget", "Remove snapshots that the policy's retention does not keep."),
    "prune": ("prune", "Delete packs that no snapshot needs any more."),
    "pin": ("pin", "Keep one snapshot, whatever the retention rules say."),
    "unpin": ("unpin", "Take the pin off a snapshot."),
    "schedule": ("schedule", "Let cron or systemd run what is due."),
    "run": ("run", "Run whatever is due."),
    "status": ("status", "Show on one screen how all policies stand."),
    "doctor": ("doctor", "Look for what would make a backup or a restore fail."),
    "monitor": ("monitor", "Judge backups for a monitoring system."),
    "notify": ("notify", "Try out messages and pings."),
    "audit": ("audit", "Show and verify the audit log of this host."),
    "report": ("report", "Verify a drill report."),
    "catalog": ("catalog", "Show and rebuild the history of runs and drills."),
}
#: A terminal that closes sends HUP. A drill must clean up then too: what it restored is not encrypted.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class LazyGroup(click.Group):
    """Commands by name, imported on use."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"crmbackup.cli.{COMMANDS[cmd_name][0]}")
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            import difflib

            near = difflib.get_close_matches(args[0], COMMANDS, n=1)
            if not near:
                raise
            raise click.UsageError(f"{error.message} Did you mean {near[0]}?", ctx) from error


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="crmbackup")
def cli() -> None:
    """The backup that proves itself: encrypted snapshots of a CRM's database, restores, and drills.

    POLICY is a file, or a name that is looked up in ./policies and /etc/crmbackup/policies.

    To begin: crmbackup policy new, crmbackup init POLICY, crmbackup backup POLICY, crmbackup drill POLICY.
    """


def main() -> None:
    """Run the command line and exit."""
    # Start-up makes some hundred thousand objects that live to the end: looking through them every 700 is a tenth of a
    # second that an incremental snapshot notices. Cycles are still collected, only less often.
    gc.set_threshold(50_000, 20, 20)
    _prepare_streams()
    for number in STOPPING:
        if signal.getsignal(number) is not signal.SIG_IGN:  # nohup and `&` in scripts ignore some on purpose
            signal.signal(number, _stop)
    code = run(sys.argv[1:])
    for name in ("stdout", "stderr"):
        try:
            getattr(sys, name).flush()
        except OSError as error:
            code = code or (CLOSED_PIPE if isinstance(error, BrokenPipeError) else INTERNAL)
            setattr(sys, name, None)  # or the interpreter would complain when it flushes at exit
    gc.freeze()  # nor is there anything to gain from a last look at them
    sys.exit(code)


def _prepare_streams() -> None:
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        stream = getattr(sys, name)
        if stream is None:
            # Closed by whoever started us, as `>&-` does. Its number must not become that of a file of ours.
            setattr(sys, name, Path(os.devnull).open(mode, encoding="utf-8"))  # noqa: SIM115 - open to the end
        elif isinstance(stream, io.TextIOWrapper) and mode == "w":
            # Names in a database may hold what the terminal's encoding has no character for.
            stream.reconfigure(errors="backslashreplace")


def run(arguments: list[str]) -> int:
    """Run one command line; gives the exit code."""
    as_json, verbose = "--json" in arguments, "--verbose" in arguments or "-v" in arguments
    try:
        code = cli.main(arguments, prog_name="crmbackup", standalone_mode=False)
    except SystemExit as stop:
        # click's own answer to a closed pipe.
        return CLOSED_PIPE if _reader_has_gone() else int(stop.code or 0)
    except click.exceptions.Exit as stop:
        return stop.exit_code
    except click.Abort as error:
        return _failed(error, as_json=as_json)
    except click.ClickException as error:
        from crmbackup.cli.failures import report_usage

        return report_usage(error, as_json=as_json)
    except BrokenPipeError as error:
        return CLOSED_PIPE if _reader_has_gone() else _failed(error, as_json=as_json, verbose=verbose)
    except Exception as error:  # noqa: BLE001 - the last line of defence: a message instead of a traceback
        return _failed(error, as_json=as_json, verbose=verbose)
    return code if isinstance(code, int) else 0  # what Context.exit was given


def _reader_has_gone() -> bool:
    """Whether a pipe that we write to has lost its other end."""
    poll = select.poll()
    for descriptor in (1, 2):
        poll.register(descriptor, 0)
    return any(state & select.POLLERR for _, state in poll.poll(0))


def _failed(error: Exception, *, as_json: bool, verbose: bool = False) -> int:
    from crmbackup.cli.failures import report

    return report(error, as_json=as_json, verbose=verbose)


def _stop(number: int, _frame: FrameType | None) -> None:
    # Only the first counts: cleaning up must not be cut short by somebody who presses Ctrl-C twice.
    for each in STOPPING:
        signal.signal(each, signal.SIG_IGN)
    name = "Ctrl-C" if number == signal.SIGINT else f"signal {signal.Signals(number).name[3:]}"
    raise Interrupted(f"stopped by {name}", hint="nothing half is left behind; run it again")
