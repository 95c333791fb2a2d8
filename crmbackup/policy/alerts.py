"""Who is told of runs, what is run around them, and where they are logged: the sections notify, hooks and log."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, ConfigDict, Field, WithJsonSchema, model_validator

from crmbackup.policy.fields import AbsolutePath, PositiveDuration, SecretReference, Section, fail

#: What crmbackup does by itself, so that somebody must be told of it. Whoever restores is there and sees it.
Unattended = Literal["backup", "drill", "check", "forget", "prune"]
Told = Literal["failure", "recovery", "warning", "drill", "success"]


def _some(value: tuple[str, ...]) -> tuple[str, ...]:
    # Not by min_length: that would also complain of a list whose only word is wrong.
    if not value:
        fail("must not be empty")
    return value


SOME = Field(json_schema_extra={"minItems": 1})


class Receiver(Section):
    """Somebody who gets messages, by any service that Apprise knows."""

    url: SecretReference = Field(
        description="The address as Apprise writes it, such as mailtos://user:password@example.org or slack://tokens."
    )
    on: Annotated[tuple[Told, ...], AfterValidator(_some), SOME] = Field(
        default=("failure", "recovery", "warning"),
        description="What to tell: failure, recovery after failures, warning, drill (every drill, however it ended), "
        "success (every run).",
        examples=[["failure", "recovery", "warning", "drill"]],
    )


class Ping(Section):
    """A check of a dead man's switch, such as Healthchecks, that misses runs which do not come."""

    url: SecretReference = Field(
        description="The address of the check; /start and /<exit code> are added. Whoever knows it can send pings."
    )
    actions: Annotated[tuple[Unattended, ...], AfterValidator(_some), SOME] = Field(
        default=("backup",), description="Of which actions. A check should get those of one action only."
    )
    body: bool = Field(
        default=False,
        description="Also send the text that a message has: names of hosts, tables and paths leave this machine then.",
    )


def _prom(path: Path) -> Path:
    if path.suffix != ".prom":
        fail("must end in .prom: the textfile collector reads no other files")
    return path


class Metrics(Section):
    """A file for the textfile collector of Prometheus' node_exporter."""

    textfile: Annotated[
        AbsolutePath,
        AfterValidator(_prom),
        WithJsonSchema({"type": "string", "pattern": r"^[/~].*\.prom$"}),
    ] = Field(
        description="The file. Several policies of a host may share it.",
        examples=["/var/lib/prometheus/node-exporter/crmbackup.prom"],
    )
    table_rows: bool = Field(
        default=False, description="Also write the rows of each table: one series for each, names readable by anyone."
    )


class Notify(Section):
    """Whom to tell about what. None of it changes how a run ends."""

    apprise: tuple[Receiver, ...] = Field(default=(), description="Who gets messages. Needs crmbackup[notify].")
    pings: tuple[Ping, ...] = Field(
        default=(), description="Which dead man's switches get pings. Needs crmbackup[notify]."
    )
    metrics: Metrics | None = Field(
        default=None, description="Where Prometheus finds metrics. Needs crmbackup[notify]."
    )
    repeat: PositiveDuration = Field(
        default=timedelta(days=1),
        description="How long to be silent about a failure or warning that goes on and was told.",
        json_schema_extra={"default": "24h"},
    )
    timeout: PositiveDuration = Field(
        default=timedelta(seconds=30),
        description="How long a run may take for all its messages and pings, retries included.",
        json_schema_extra={"default": "30s"},
    )


def _program(argv: tuple[str, ...]) -> tuple[str, ...]:
    if not argv[0] or any("\0" in each for each in argv):
        fail("must start with the name of a program and hold no control characters: no shell reads it")
    return argv


Program = Annotated[tuple[str, ...], AfterValidator(_some), AfterValidator(_program), SOME]


class ActionHooks(Section):
    """Programs around one action: lists of program and arguments, which no shell reads."""

    model_config = ConfigDict(
        json_schema_extra={"anyOf": [{"required": [key]} for key in ("before", "after", "on_error")]}
    )

    before: Program | None = Field(
        default=None, description="Runs before. If it fails, the action does not take place and the run fails."
    )
    after: Program | None = Field(
        default=None, description="Runs after the action succeeded. If it fails, that is a warning."
    )
    on_error: Program | None = Field(
        default=None, description="Runs after the action or its before hook failed. If it fails, that is a warning."
    )
    timeout: PositiveDuration = Field(
        default=timedelta(minutes=5),
        description="How long each may take. Then it is killed, with all processes it started, and counts as failed.",
        json_schema_extra={"default": "5m"},
    )

    @model_validator(mode="after")
    def _runs_something(self) -> ActionHooks:
        if not (self.before or self.after or self.on_error):
            fail("must have before, after or on_error")
        return self


class Hooks(Section):
    """Programs around the actions."""

    backup: ActionHooks | None = Field(default=None, description="Around backups.")
    restore: ActionHooks | None = Field(default=None, description="Around restores.")
    drill: ActionHooks | None = Field(default=None, description="Around drills.")
    check: ActionHooks | None = Field(default=None, description="Around checks.")
    forget: ActionHooks | None = Field(default=None, description="Around the removal of snapshots.")
    prune: ActionHooks | None = Field(default=None, description="Around the removal of packs.")


class Log(Section):
    """Where runs are logged."""

    model_config = ConfigDict(
        json_schema_extra={
            "anyOf": [
                {"required": ["path"]},
                {"properties": {"syslog": {"const": True}}, "required": ["syslog"]},
            ]
        }
    )

    path: AbsolutePath | None = Field(
        default=None,
        description="A file to append to. It is opened anew for each line, so that logrotate may rename it.",
        examples=["/var/log/crmbackup/crm.log"],
    )
    syslog: bool = Field(default=False, description="Log to the system's log: the journal, or a syslog daemon.")
    format: Literal["text", "json"] = Field(default="text", description="How a line looks.")

    @model_validator(mode="after")
    def _goes_somewhere(self) -> Log:
        if self.path is None and not self.syslog:
            fail("must have path, syslog: true or both")
        return self
