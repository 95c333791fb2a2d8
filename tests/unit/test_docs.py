"""The documentation is complete and true: commands, options, exit codes, variables, JSON types and warnings."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from crmbackup.cli import exit_codes
from crmbackup.cli.main import cli

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "crmbackup"
PAGES = (
    "README.md",
    "CHANGELOG.md",
    "docs/cli.md",
    "docs/policy.md",
    "docs/errors.md",
    "docs/operations.md",
    "docs/mysql.md",
    "docs/design.md",
)
OPERATIONS = (ROOT / "docs" / "operations.md").read_text("utf-8")
CLI_PAGE = (ROOT / "docs" / "cli.md").read_text("utf-8")


def leaves(command: click.Command, path: str = "crmbackup") -> Iterator[tuple[str, click.Command]]:
    """Every command that does something, by its full name."""
    if isinstance(command, click.Group):
        for name in command.list_commands(click.Context(command)):
            found = command.get_command(click.Context(command), name)
            assert found is not None
            yield from leaves(found, f"{path} {name}")
    else:
        yield path, command


COMMANDS = dict(leaves(cli))


def calls(name: str) -> Iterator[tuple[Path, ast.Call]]:
    """Every call of a function or method of that name in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", getattr(node.func, "id", "")) == name:
                yield path, node


def table(page: str, heading: str) -> set[str]:
    """What stands in code style in the first column of a section's table."""
    section = page.split(f"\n## {heading}\n")[1].split("\n## ")[0]
    cells = re.findall(r"^\| (`.+?) \|", section, re.MULTILINE)
    return {name for cell in cells for name in re.findall(r"`([^`]+)`", cell)}


def test_the_reference_of_commands_is_what_the_program_has() -> None:
    done = subprocess.run(
        [sys.executable, ROOT / "scripts" / "gen-cli-docs", "--check"], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_argument_and_option_is_explained(name: str) -> None:
    command = COMMANDS[name]
    section = CLI_PAGE.split(f"### {name}\n")[1].split("\n### ")[0]
    assert command.help
    assert len(command.get_short_help_str(200)) > 15
    for parameter in command.params:
        if isinstance(parameter, click.Option):
            assert parameter.help, f"{name} {parameter.opts} has no help"
            for option in parameter.opts:
                assert f"`{option}`" in section
        else:
            assert (parameter.metavar or parameter.name.upper()).strip("[].") in section


def test_the_list_of_commands_is_that_of_the_modules() -> None:
    from crmbackup.cli.main import COMMANDS as LISTED

    for name, (_, text) in LISTED.items():
        command = cli.get_command(click.Context(cli), name)
        assert command is not None
        assert command.name == name
        assert text.endswith(".")


@pytest.mark.parametrize("page", [page for page in PAGES if page != "docs/design.md"])
def test_commands_that_pages_show_exist(page: str) -> None:
    """What stands behind `crmbackup` in code is a command of ours, and its options are that command's."""
    text = (ROOT / page).read_text("utf-8")
    code = [*re.findall(r"```\w*\n(.*?)```", text, re.DOTALL), *re.findall(r"`(crmbackup [^`\n]+)`", text)]
    for block in code:
        for line in block.replace("\\\n", " ").splitlines():
            found = re.search(r"(?:^|[\s/])crmbackup ((?:[a-z]+ ?)+)?(.*)", line.split("#")[0])
            if not found or not found[1]:
                continue
            words = found[1].split()
            names = [" ".join(["crmbackup", *words[:count]]) for count in (2, 1)]
            name = next((each for each in names if each in COMMANDS), None)
            if name is None:
                groups = [each for each in COMMANDS if each.startswith(f"{names[1]} ")]
                assert groups or words[0] in ("is", "does", "has", "itself", "never"), line
                continue
            known = {option for parameter in COMMANDS[name].params for option in parameter.opts} | {"--help"}
            assert set(re.findall(r"(?<!\S)--[a-z-]+", found[2])) <= known, line


@pytest.mark.parametrize("page", PAGES)
def test_links_between_pages_lead_somewhere(page: str) -> None:
    here = (ROOT / page).parent
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (ROOT / page).read_text("utf-8")):
        assert (here / target).exists(), target


def test_the_readme_lists_exactly_the_exit_codes() -> None:
    section = (ROOT / "README.md").read_text("utf-8").split("## Exit codes")[1].split("\n## ")[0]
    listed = [int(number) for number in re.findall(r"^\| (\d+) \|", section, re.MULTILINE)]
    used = {exit_codes.OK, exit_codes.INTERNAL, exit_codes.CLOSED_PIPE, *exit_codes.EXIT_CODES.values()}
    assert listed == sorted(used)


def test_environment_variables_are_listed_and_used() -> None:
    source = "\n".join(path.read_text("utf-8") for path in PACKAGE.rglob("*.py"))
    used = set(re.findall(r'"(CRMBACKUP_[A-Z_]+)"', source))
    used |= {"XDG_CONFIG_HOME", "XDG_STATE_HOME", "HOME", "MYSQL_PWD", "SUDO_USER", "LOGNAME", "USER"} & set(
        re.findall(r'"([A-Z_]+)"', source)
    )
    assert table(CLI_PAGE, "Environment variables") == used | {"AWS_*"}
    for page in PAGES:
        named = set(re.findall(r"(?<!_)CRMBACKUP_[A-Z_]+", (ROOT / page).read_text("utf-8")))
        examples = {"CRMBACKUP_ACCESS_KEY_ID", "CRMBACKUP_SECRET_ACCESS_KEY"}
        assert named <= used | examples, page


def test_every_type_of_json_line_is_listed() -> None:
    kinds = {node.args[0].value for path, node in calls("result") if len(node.args) == 3}
    lists = {"snapshots", "runs", "drills", "entries", "verdicts"}  # shown as text only: JSON has a line for each entry
    events = {"phase", "phase-end", "progress", "notice", "warning", "error"}
    assert table(CLI_PAGE, "JSON lines") - {"NO_COLOR"} == (kinds - lists) | events


def test_every_warning_is_listed() -> None:
    codes = set()
    for _, node in calls("Warned"):
        code = node.args[0]
        if isinstance(code, ast.Constant):
            codes.add(code.value)
        else:
            assert ast.unparse(code) in ("error.code", "problem.code")
    assert table(CLI_PAGE, "Warnings") == codes


def test_every_metric_is_listed() -> None:
    from crmbackup.notify import metrics

    names = {metrics.TABLE_ROWS[0], metrics.BUILD_INFO[0]}
    names |= {name for name, _ in [*metrics.ACTION_METRICS.values(), *metrics.FACT_METRICS.values()]}
    section = OPERATIONS.split("\n### Metrics\n")[1].split("\n### ")[0]
    assert set(re.findall(r"^\| `(\w+)`", section, re.MULTILINE)) == names


def test_every_event_of_the_audit_log_is_listed() -> None:
    from crmbackup.core.audit import CHAIN_BROKEN

    used = {node.args[0].value for _, node in calls("record") if node.args and isinstance(node.args[0], ast.Constant)}
    section = OPERATIONS.split("\n### Audit log\n")[1]
    listed = {
        name for row in re.findall(r"^\| (`.+?) \|", section, re.MULTILINE) for name in re.findall("`(.+?)`", row)
    }
    for_others = {"deletion", "pin"}  # recorded by commands that remove snapshots
    assert listed - for_others == (used | {CHAIN_BROKEN}) - for_others


def test_every_variable_of_hooks_is_listed() -> None:
    from crmbackup.cli.operation import HOOK_ENVIRONMENT

    section = OPERATIONS.split("\n### Hooks\n")[1].split("\n### ")[0]
    source = (PACKAGE / "cli" / "operation.py").read_text("utf-8")
    given = set(re.findall(r'"(CRMBACKUP_[A-Z_]+)"', source)) | set(HOOK_ENVIRONMENT)
    assert given <= set(re.findall(r"`([A-Z_]+)`", section))


def test_the_changelog_is_kept() -> None:
    text = (ROOT / "CHANGELOG.md").read_text("utf-8")
    assert text.startswith("# Changelog\n")
    assert "Keep a Changelog" in text
    from crmbackup import __version__

    assert re.search(
        rf"^## \[?{re.escape(__version__)}\]? - (unreleased|\d{{4}}-\d\d-\d\d)$", text, re.MULTILINE | re.IGNORECASE
    )
