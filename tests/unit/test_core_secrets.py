"""References to secrets: where values come from, and that they print nowhere."""

from __future__ import annotations

import pickle
import sys
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core.errors import SecretUnavailable
from crmbackup.core.secrets import CommandRef, EnvRef, FileRef, Secret, SecretRef, resolve

VALUE = "corréct horse battery 鑰"


def command(code: str) -> CommandRef:
    return CommandRef((sys.executable, "-c", code))


def test_a_value_comes_from_the_environment_that_is_given() -> None:
    assert resolve(EnvRef("PASS"), {"PASS": VALUE}).reveal() == VALUE


def test_a_value_comes_from_a_file_without_its_line_end(tmp_path: Path) -> None:
    for ending in ("", "\n", "\r\n", "\n\n"):
        (tmp_path / "pass").write_bytes((VALUE + ending).encode())
        assert resolve(FileRef(str(tmp_path / "pass")), {}).reveal() == VALUE


def test_spaces_belong_to_the_value(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text(f" {VALUE} \n", "utf-8")
    assert resolve(FileRef(str(tmp_path / "pass")), {}).reveal() == f" {VALUE} "


def test_a_value_comes_from_a_command_that_gets_the_environment_given() -> None:
    reference = command("import os; print(os.environ['PASS'])")
    assert resolve(reference, {"PASS": "from-outside", "PYTHONUTF8": "1"}).reveal() == "from-outside"


def test_a_command_runs_without_a_shell() -> None:
    reference = CommandRef((sys.executable, "-c", "import sys; print(sys.argv[1])", "$HOME; echo `id`"))
    assert resolve(reference, {}).reveal() == "$HOME; echo `id`"


@pytest.mark.parametrize(
    ("reference", "origin", "why"),
    [
        (EnvRef("ABSENT"), "environment variable ABSENT", "not set, or empty"),
        (EnvRef("EMPTY"), "environment variable EMPTY", "not set, or empty"),
        (FileRef("/absent/file"), "file /absent/file", "No such file"),
        (FileRef("/"), "file /", "Is a directory"),
        (CommandRef(("/absent/program",)), "command /absent/program", "No such file"),
        (command(f"print({VALUE!r}); raise SystemExit(3)"), "command", "exit code 3"),
        (command("print()"), "command", "it printed nothing"),
        (command("import sys; sys.stdout.buffer.write(b'\\xff\\xfe')"), "command", "decode"),
    ],
    ids=["unset", "empty-variable", "no-file", "directory", "no-program", "failing", "silent", "not-text"],
)
def test_what_cannot_be_had_says_where_and_why_and_what_to_do(reference: SecretRef, origin: str, why: str) -> None:
    with pytest.raises(SecretUnavailable) as caught:
        resolve(reference, {"EMPTY": ""})
    assert origin in caught.value.what
    assert why in caught.value.why
    assert caught.value.hint


def test_an_empty_file_counts_as_missing(tmp_path: Path) -> None:
    (tmp_path / "pass").write_text("\n")
    with pytest.raises(SecretUnavailable, match="it is empty"):
        resolve(FileRef(str(tmp_path / "pass")), {})


def test_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pass").write_bytes(b"\xff\xfe")
    with pytest.raises(SecretUnavailable, match="decode"):
        resolve(FileRef(str(tmp_path / "pass")), {})


def test_a_failing_command_does_not_tell_what_it_printed() -> None:
    code = f"import sys; print({VALUE!r}); print({VALUE!r}, file=sys.stderr); raise SystemExit(1)"
    with pytest.raises(SecretUnavailable) as caught:
        resolve(command(code), {"PYTHONUTF8": "1"})
    error = caught.value
    assert VALUE not in f"{error} {error.what} {error.why} {error.hint} {error!r}"


@given(value=st.text(min_size=8))
def test_a_secret_does_not_print_itself(value: str) -> None:
    secret = Secret(value)
    assert f"{secret} {secret!r} {[secret]}" == "Secret(***) Secret(***) [Secret(***)]"
    assert secret.reveal() == value
    assert pickle.loads(pickle.dumps(secret)) == secret, "workers need it"


def test_a_traceback_does_not_print_it() -> None:
    secret = Secret(VALUE)
    try:
        raise ValueError(secret)
    except ValueError as error:
        text = "".join(traceback.TracebackException.from_exception(error, capture_locals=True).format())
    assert "Secret(***)" in text
    assert VALUE not in text


def test_equal_values_are_equal_secrets() -> None:
    assert Secret("a") == Secret("a") != Secret("b")
    assert Secret("a") != "a"
    assert len({Secret("a"), Secret("a"), Secret("b")}) == 2
