"""The house rules that a machine can hold: layers, file sizes, where libraries and the environment may be used."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGE = "crmbackup"
MAX_LINES = 400

#: Top first. A package imports only from lower lines; packages on one line never import each other.
LAYERS = (
    ("cli",),
    ("operations", "scheduling"),
    ("policy",),
    ("catalog", "engines", "notify", "reports", "repository"),
    ("storage",),
    ("core",),
)
LEVEL = {name: level for level, names in enumerate(reversed(LAYERS)) for name in names}

#: Library -> the places, relative to the package, that may import it. "x/" is a package, "x/y" a prefix of file names.
ALLOWED = {
    "boto3": ("storage/s3",),
    "botocore": ("storage/s3",),
    "apsw": ("engines/sqlite/",),
    "sqlite3": ("engines/sqlite/",),
    "sqlalchemy": ("catalog/",),
    "pymysql": ("engines/mysql/",),
    "cryptography": ("repository/", "reports/"),
    "apprise": ("notify/",),
    "prometheus_client": ("notify/",),
    "requests": ("notify/",),
}
#: programs.py: what runs beside libpq gets the environment that libpq reads by itself.
ENVIRONMENT = ("cli/wiring.py", "engines/postgres/programs.py")
ENVIRONMENT_NAMES = ("os.environ", "os.environb", "os.getenv", "os.getenvb", "os.path.expandvars")
IMPORTERS = ("import_module", "importlib.import_module", "__import__")
UNKNOWN = "?"

HEAVY = (
    "boto3",
    "sqlalchemy",
    "pydantic",
    "jinja2",
    "cryptography",
    "apsw",
    "zstandard",
    "apprise",
    "prometheus_client",
    "requests",
)


def imports(tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    """Line and full name of everything that is imported, inside functions and under TYPE_CHECKING too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: -node.level]
                base = ".".join([*parents, base] if base else parents)
            yield from ((node.lineno, f"{base}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in IMPORTERS:
            yield node.lineno, _written_name(node.args[0]) if node.args else UNKNOWN


def _written_name(node: ast.expr) -> str:
    """A text as far as it is written in the source, when that is enough to know the package of ours that it names."""
    if isinstance(node, ast.Constant):
        return str(node.value)
    if isinstance(node, ast.JoinedStr) and node.values and isinstance(node.values[0], ast.Constant):
        start = str(node.values[0].value)
        if start.startswith(f"{PACKAGE}.") and start.count(".") >= 2:
            return start
    return UNKNOWN


def layer_fault(importer: str, imported: str) -> str:
    """Why `importer` (a path relative to the package) may not import a name of the package; empty when it may."""
    own = importer.split("/")[0]
    other = imported.split(".")[1] if "." in imported else ""
    if own not in LEVEL or other not in LEVEL or own == other:
        return ""
    if LEVEL[other] > LEVEL[own]:
        return f"{own} imports {other}, which is above it"
    if LEVEL[other] == LEVEL[own]:
        return f"{own} imports {other}, which is beside it"
    return ""


def faults(root: Path) -> list[str]:
    """Every breach of the rules in the package below `root`, as "file:line: what"."""
    found = []
    for path in sorted((root / PACKAGE).rglob("*.py")):
        place = path.relative_to(root / PACKAGE).as_posix()
        text = path.read_text("utf-8")
        tree = ast.parse(text)
        module = ".".join([PACKAGE, *path.relative_to(root / PACKAGE).with_suffix("").parts])
        found += [f"{place}:{line}: {what}" for line, what in _file_faults(place, text, tree, module)]
    return found


def _file_faults(place: str, text: str, tree: ast.Module, module: str) -> Iterator[tuple[int, str]]:
    lines = text.count("\n")
    if lines > MAX_LINES:
        yield lines, f"{lines} lines are more than {MAX_LINES}"
    if "/" in place and place.split("/")[0] not in LEVEL:
        yield 1, f"{place.split('/')[0]} is in no layer"
    if place.endswith("__init__.py") and "/" in place and any(not isinstance(n, ast.Expr) for n in tree.body):
        yield 1, "a package's __init__ holds more than its docstring"
    for line, name in imports(tree, module):
        if fault := import_fault(place, name):
            yield line, fault
    if place not in ENVIRONMENT:
        yield from ((line, "reads the environment") for line in environment_reads(tree, module))


def import_fault(place: str, name: str) -> str:
    """Why the file at `place` may not import `name`; empty when it may."""
    top = name.split(".")[0]
    if name == UNKNOWN:
        return "imports a module by a name that is not written there"
    if top == PACKAGE:
        return layer_fault(place, name)
    if place.startswith("core/") and top not in sys.stdlib_module_names:
        return f"core imports {top}, which is not of the standard library"
    if top in ALLOWED and not place.startswith(ALLOWED[top]):
        return f"only {' and '.join(ALLOWED[top])} may import {top}"
    return ""


def environment_reads(tree: ast.Module, module: str) -> Iterator[int]:
    """The lines that read environment variables, by attribute or by an import of the name."""
    yield from (line for line, name in imports(tree, module) if name in ENVIRONMENT_NAMES)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and ast.unparse(node) in ENVIRONMENT_NAMES:
            yield node.lineno


def test_the_package_keeps_the_rules() -> None:
    assert faults(ROOT) == []


def test_every_package_has_a_layer() -> None:
    packages = {path.parent.name for path in (ROOT / PACKAGE).glob("*/__init__.py")}
    assert packages  # the layers of packages that come later are settled already
    assert packages <= set(LEVEL)


PLANTED = [
    ("storage/base.py", "from crmbackup.repository.pack import x", "storage imports repository, which is above it"),
    ("storage/base.py", "def f():\n    import crmbackup.cli.main", "storage imports cli, which is above it"),
    ("storage/base.py", "from ..policy import model", "storage imports policy, which is above it"),
    ("storage/base.py", "from .. import policy", "storage imports policy, which is above it"),
    ("storage/base.py", "from crmbackup import policy", "storage imports policy, which is above it"),
    ("storage/base.py", "import_module('crmbackup.policy.x')", "storage imports policy, which is above it"),
    ("storage/base.py", "import_module(f'crmbackup.policy.{x}')", "storage imports policy, which is above it"),
    ("storage/base.py", "import_module(f'crmbackup.{x}')", "imports a module by a name that is not written there"),
    ("storage/base.py", "__import__(name)", "imports a module by a name that is not written there"),
    ("catalog/runs.py", "from crmbackup.repository import pack", "catalog imports repository, which is beside it"),
    ("engines/sqlite/read.py", "import crmbackup.notify.x", "engines imports notify, which is beside it"),
    ("engines/sqlite/read.py", "from ...notify import x", "engines imports notify, which is beside it"),
    ("operations/backup.py", "from crmbackup.scheduling import cron", "operations imports scheduling, which is beside it"),
    ("core/x.py", "import yaml", "core imports yaml, which is not of the standard library"),
    ("core/x.py", "from crmbackup.storage.base import Storage", "core imports storage, which is above it"),
    ("storage/local.py", "import boto3", "only storage/s3 may import boto3"),
    ("repository/x.py", "from botocore.exceptions import ClientError", "only storage/s3 may import botocore"),
    ("engines/base.py", "import apsw", "only engines/sqlite/ may import apsw"),
    ("operations/x.py", "def f():\n    import sqlite3", "only engines/sqlite/ may import sqlite3"),
    ("cli/main.py", "import sqlalchemy.orm", "only catalog/ may import sqlalchemy"),
    ("storage/x.py", "from cryptography import fernet", "only repository/ and reports/ may import cryptography"),
    ("cli/main.py", "import os\nprint(os.environ['HOME'])", "reads the environment"),
    ("policy/x.py", "import os\nos.getenv('HOME')", "reads the environment"),
    ("policy/x.py", "from os import environ", "reads the environment"),
    ("policy/x.py", "\n" * (MAX_LINES + 1), f"{MAX_LINES + 1} lines are more than {MAX_LINES}"),
    ("helpers/x.py", "", "helpers is in no layer"),
    ("policy/__init__.py", "from crmbackup.policy.model import Policy", "a package's __init__ holds more than its docstring"),
]  # fmt: skip


@pytest.mark.parametrize(("place", "text", "fault"), PLANTED)
def test_a_planted_breach_is_found(tmp_path: Path, place: str, text: str, fault: str) -> None:
    path = tmp_path / PACKAGE / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    found = faults(tmp_path)
    assert [entry.partition(": ")[2] for entry in found] == [fault]
    assert found[0].startswith(f"{place}:")


ALLOWED_EXAMPLES = [
    ("cli/wiring.py", "import os\nfrom crmbackup.core.clock import SystemClock\nprint(os.environ)"),
    ("cli/main.py", "import importlib\nimportlib.import_module(f'crmbackup.cli.{name}')"),
    ("storage/s3_errors.py", "import botocore.exceptions"),
    ("storage/s3.py", "import boto3"),
    ("engines/sqlite/read.py", "import apsw\nfrom crmbackup.engines.base import Engine\nfrom ..base import Engine"),
    ("catalog/runs.py", "from sqlalchemy import select"),
    ("reports/signing.py", "from cryptography.hazmat.primitives.asymmetric import ed25519"),
    ("operations/backup.py", "from crmbackup import __version__\nimport crmbackup.repository.pack\nimport blake3"),
    ("core/x.py", "from __future__ import annotations\nimport errno\nfrom crmbackup.core.errors import Locked"),
    ("policy/x.py", "\n" * MAX_LINES),
    ("policy/__init__.py", '"""Policies."""\n'),
    ("__init__.py", '"""The tool."""\n__version__ = "1"\n'),
]


@pytest.mark.parametrize(("place", "text"), ALLOWED_EXAMPLES)
def test_what_is_allowed_is_not_found(tmp_path: Path, place: str, text: str) -> None:
    path = tmp_path / PACKAGE / place
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert faults(tmp_path) == []


def test_the_command_line_starts_without_the_heavy_libraries() -> None:
    code = f"import sys, crmbackup.cli.main; print(*(name for name in {HEAVY!r} if name in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.stderr == ""
    assert done.stdout.split() == []
