"""crmbackup policy."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from crmbackup.cli.options import F, output_options
from crmbackup.cli.render import make_show

if TYPE_CHECKING:
    from crmbackup.policy.new import Question

#: What `policy new` asks, as options: the keys of policy.new.questions(), which would be slow to import for --help.
ANSWERS = {
    "name": "Name of the policy. Default: crm",
    "source": "The database to protect: /path/to/file, postgresql://user@host/name or mysql://user@host/name.",
    "repository_url": "Where to keep snapshots: /path or s3://bucket/prefix.",
    "endpoint": "S3: address of the server, if it is not AWS.",
    "region": "S3: region of the bucket, if it needs one.",
    "secrets": "S3: where the credentials are kept: file, env or none. Default: file",
    "schedule": "When to take snapshots: nightly, hourly, office or none. Default: nightly",
    "timezone": "Time zone of the schedule. Default: UTC",
    "rpo": "How old the newest snapshot may get, such as 26h.",
    "rto": "How long a restore may take, such as 1h.",
}


@click.group("policy")
def command() -> None:
    """Write, validate and describe policies."""


@command.command("validate")
@click.argument("policies", metavar="POLICY...", nargs=-1, required=True)
@output_options
def validate(policies: tuple[str, ...], as_json: bool, verbose: bool) -> None:
    """Say everything that is wrong with a policy at once."""
    from crmbackup.cli.policies import refuse_namesake
    from crmbackup.core.errors import PolicyInvalid
    from crmbackup.policy.find import find_policy
    from crmbackup.policy.loader import check_policy_file
    from crmbackup.policy.problems import Problem

    with make_show(as_json=as_json, verbose=verbose) as show:
        bad = 0
        for name in policies:
            path = find_policy(name, cwd=Path.cwd())
            loaded, problems = check_policy_file(path)
            if loaded:
                try:
                    refuse_namesake(Path.cwd(), loaded)
                except PolicyInvalid as error:
                    loaded, problems = None, [Problem(_line_of_name(path), 1, "name", f"is taken: {error}")]
            bad += loaded is None
            data = {"file": str(path), "valid": loaded is not None, "problems": [asdict(each) for each in problems]}

            def text(path: Path = path, lines: list[str] = [each.text(str(path)) for each in problems]) -> None:  # noqa: B006, B008 - bound now
                click.echo("\n".join(lines) if lines else f"{path} is valid")

            show.result("policy", data, text)
        if bad:
            raise PolicyInvalid(
                f"{bad} of {len(policies)} policies are not valid", hint="each key is described in docs/policy.md"
            )


def _line_of_name(path: Path) -> int:
    lines = path.read_text("utf-8-sig").splitlines()
    return next((number for number, line in enumerate(lines, 1) if line.startswith("name")), 1)


@command.command("schema")
def schema() -> None:
    """Print the JSON Schema of policies, for editors."""
    import json

    from crmbackup.policy.schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2, ensure_ascii=False))


def _answer_options(function: F) -> F:
    for key, text in reversed(ANSWERS.items()):
        function = click.option(f"--{key.replace('_', '-')}", key, metavar="TEXT", help=text)(function)
    return function


@command.command("new")
@click.option(
    "--output", type=click.Path(path_type=Path, dir_okay=False), help="Where to write it. Default: policies/NAME.yaml"
)
@_answer_options
@click.option("--defaults", is_flag=True, help="Take the default wherever no answer is given, and ask nothing.")
def new(output: Path | None, defaults: bool, **given: str | None) -> None:
    """Write a commented policy after a few questions; options answer them beforehand."""
    from crmbackup.core.errors import TargetExists, UsageError
    from crmbackup.core.files import local_error, write_durably
    from crmbackup.policy.new import NewPolicy, is_server, questions, render_policy

    answers = {key: _from_here(key, value) for key, value in given.items() if value is not None}
    for question in questions():
        option = f"--{question.key.replace('_', '-')}"
        if not question.applies(answers):
            if question.key in answers:
                raise UsageError(f"{option} does not fit the other answers")
            continue
        if question.key in answers:
            problem = question.check(answers[question.key])
            if problem:
                raise UsageError(f"{option} {answers[question.key]}", why=problem)
        elif not defaults:
            answers[question.key] = _ask(question)
        elif question.default is None:
            raise UsageError(f"{option} is missing: it has no default")
        else:
            answers[question.key] = question.default
    text = render_policy(NewPolicy(**answers))
    path = output or Path("policies") / f"{answers['name']}.yaml"
    if path.exists():
        raise TargetExists(f"{path} exists already", hint="choose another --output")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise local_error(error, f"create {path.parent}") from error
    write_durably(path, text.encode("utf-8"), mode=0o640)
    if not is_server(answers["source"]) and not Path(answers["source"]).expanduser().exists():
        click.echo(f"crmbackup: warning: there is no file {answers['source']} yet", err=True)
    click.echo(f"{path} is written. Look at it, then: crmbackup init {path}")


def _ask(question: Question) -> str:
    """An answer that passes the question's check."""
    text = question.prompt + (f" ({', '.join(question.choices)})" if question.choices else "")
    while True:
        typed = click.prompt(text, default=question.default, show_default=bool(question.default), err=True)
        answer = _from_here(question.key, str(typed))
        problem = question.check(answer)
        if not problem:
            return answer
        click.echo(f"  that {problem}", err=True)


def _from_here(key: str, answer: str) -> str:
    """Whoever types a path means it from where they are; a policy holds it from the root on."""
    if key == "repository_url":
        relative = answer.startswith(("./", "../"))
    else:
        relative = key == "source" and answer[:1] not in ("", "/", "~") and "://" not in answer
    return str(Path.cwd() / answer) if relative else answer
