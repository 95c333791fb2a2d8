"""Each error has one stable code, is documented, survives the way back from a worker, and has an exit code."""

from __future__ import annotations

import inspect
import pickle
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crmbackup.core import errors
from crmbackup.core.errors import CrmBackupError

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"[a-z]+(-[a-z]+)*")


def classes() -> list[type[CrmBackupError]]:
    return [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, CrmBackupError)]


def documented_tree() -> dict[str, str]:
    """Class -> parent, as the indentation in the module's docstring draws it."""
    tree: dict[str, str] = {}
    open_parents: list[tuple[int, str]] = []
    for line in (errors.__doc__ or "").splitlines():
        names = re.match(r"( +)([A-Z]\w+(?:, [A-Z]\w+)*)(?:  |$)", line)
        if not names:
            continue
        depth = len(names[1])
        open_parents = [entry for entry in open_parents if entry[0] < depth]
        for name in names[2].split(", "):
            assert name not in tree, f"{name} is there twice"
            tree[name] = open_parents[-1][1] if open_parents else "Exception"
        open_parents.append((depth, names[2].split(", ")[-1]))
    return tree


def documented_rows() -> dict[str, tuple[str, str]]:
    """Code -> meaning and what to do, from docs/errors.md."""
    rows = re.findall(
        r"^\| `([^`]+)` \| (.+?) \| (.+?) \|$", (ROOT / "docs" / "errors.md").read_text("utf-8"), re.MULTILINE
    )
    assert len({code for code, _, _ in rows}) == len(rows)
    return {code: (meaning, action) for code, meaning, action in rows}


def test_codes_are_unique_and_well_formed() -> None:
    codes = [kind.code for kind in classes()]
    assert len(set(codes)) == len(codes)
    assert all(CODE.fullmatch(code) for code in codes)
    assert all("code" in vars(kind) for kind in classes()), "a code is inherited"


def test_the_docstring_draws_the_tree_as_it_is() -> None:
    assert documented_tree() == {kind.__name__: kind.__bases__[0].__name__ for kind in classes()}


def test_docs_list_every_code_and_no_other() -> None:
    rows = documented_rows()
    assert set(rows) == {kind.code for kind in classes()}
    assert all(len(meaning) > 10 and len(action) > 10 for meaning, action in rows.values())


def test_docs_say_of_what_may_be_retried_that_it_may_be() -> None:
    rows = documented_rows()
    assert {kind.code for kind in classes() if kind.retryable} <= {
        code for code, (_, action) in rows.items() if "try again" in action.lower()
    }


@pytest.mark.parametrize("kind", classes(), ids=lambda kind: kind.code)
def test_every_class_survives_pickling(kind: type[CrmBackupError]) -> None:
    again = pickle.loads(pickle.dumps(kind("cannot do it", why="the cause", hint="the way out")))
    assert type(again) is kind
    assert (again.what, again.why, again.hint, again.code) == ("cannot do it", "the cause", "the way out", kind.code)
    assert kind.__doc__


@given(what=st.text(), why=st.text(), hint=st.text())
def test_any_text_survives_pickling(what: str, why: str, hint: str) -> None:
    error = errors.Locked(what, why=why, hint=hint)
    again = pickle.loads(pickle.dumps(error))
    assert (again.what, again.why, again.hint, str(again)) == (what, why, hint, str(error))


def test_text_is_what_and_why() -> None:
    assert (
        str(errors.DiskFull("cannot write x", why="No space left", hint="free some")) == "cannot write x: No space left"
    )
    assert str(errors.DiskFull("cannot write x", hint="free some")) == "cannot write x"


def test_every_class_has_an_exit_code_of_its_own_family() -> None:
    from crmbackup.cli.exit_codes import EXIT_CODES, exit_code

    assert EXIT_CODES[CrmBackupError] == 1
    assert all(issubclass(kind, CrmBackupError) for kind in EXIT_CODES)
    for kind in classes():
        nearest = next(ancestor for ancestor in kind.__mro__ if ancestor in EXIT_CODES)
        assert exit_code(kind("x")) == EXIT_CODES[nearest]
        assert 0 < exit_code(kind("x")) < 256


def test_the_readme_lists_every_exit_code() -> None:
    from crmbackup.cli.exit_codes import EXIT_CODES

    rows = re.findall(r"^\|\s*`?(\d+)`?\s*\|", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert {0, *EXIT_CODES.values()} <= {int(number) for number in rows}
