"""YAML text to a tree of plain values that know their line, with all problems at once.

A policy needs mappings, lists and scalars, nothing else of YAML. So anchors, aliases, merge keys, tags and
several documents are problems; nothing is expanded, and size, depth and number of values are bounded. Where
YAML 1.1 and 1.2 read a bare word differently (yes, on, 010, 1:30, dates) it must be put in quotes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

MAX_DEPTH = 16
MAX_VALUES = 10_000

_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})")
_DECIMAL = re.compile(r"[-+]?(0|[1-9][0-9]{0,18})\.[0-9]{1,18}")
# Numbers in YAML 1.2 that 1.1 reads as text, or digits too many for either of the two above.
_NUMBER_LIKE = re.compile(r"0o[0-7]+|[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_CONSTANTS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_TAG = "tag:yaml.org,2002:"

Path = tuple[str | int, ...]


@dataclass(frozen=True)
class Place:
    """Where something stands; both count from 1."""

    line: int
    column: int


@dataclass(frozen=True)
class Flaw:
    """Something that is wrong with the YAML itself. `path` leads to the value concerned.

    hides: the value in the tree is not what the author meant, so there is no sense in judging it.
    """

    place: Place
    path: Path
    message: str
    hides: bool = False


@dataclass
class Node:
    """A value. `content` is a scalar, a list of nodes, or a mapping of nodes with the place of each key."""

    place: Place
    content: Any = None
    keys: dict[str, Place] = field(default_factory=dict)

    def plain(self) -> Any:
        """The value without places; lists become tuples."""
        if isinstance(self.content, dict):
            return {key: node.plain() for key, node in self.content.items()}
        if isinstance(self.content, list):
            return tuple(node.plain() for node in self.content)
        return self.content


class _Stop(Exception):
    """There is no sense in reading on."""


def parse(text: str) -> tuple[Node | None, list[Flaw]]:
    """The tree and what is wrong with it. The tree is None if the text cannot be read to its end."""
    reader = _Reader()
    try:
        return reader.read(text), reader.flaws
    except _Stop:
        pass
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - (text.rfind("\n", 0, error.position) + 1) + 1
        reader.add(Place(line, column), (), "has a control character: this is not a text file")
    except yaml.MarkedYAMLError as error:
        # The end of the file says little about a quote that was never closed: its begin does.
        unclosed = "end of stream" in (error.problem or "")
        mark = (error.context_mark if unclosed else None) or error.problem_mark or error.context_mark
        reader.add(_place_of(mark), (), _syntax_message(error))
    return None, reader.flaws


def _syntax_message(error: yaml.MarkedYAMLError) -> str:
    problem = error.problem or error.context or "it cannot be read"
    context = error.context or ""
    if "alias" in context or "anchor" in context:
        return 'is not valid YAML: a value that starts with "*" or "&" needs quotes, such as "*/15 * * * *"'
    if "tag" in context or "tag" in problem or "directive" in problem or "directive" in context:
        return 'is not valid YAML: a value that starts with "!" or "%" needs quotes'
    if "'\\t'" in problem:
        return "is not valid YAML: a tab stands where only spaces may"
    if "cannot start any token" in problem:
        return f"is not valid YAML: {problem}; put the value in quotes"
    if "end of stream" in problem and "quoted" in context:
        return "is not valid YAML: this quote is never closed"
    if "expected ',' or" in problem:
        return "is not valid YAML: a comma or the closing bracket is missing here, or the value needs quotes"
    if "expected <block end>" in problem:
        return "is not valid YAML: check the indent here and in the lines above"
    if "mapping values are not allowed" in problem:
        return 'is not valid YAML: a colon stands where none may; put values that hold ": " in quotes, check the indent'
    return f"is not valid YAML: {problem}"


class _Reader:
    def __init__(self) -> None:
        self.flaws: list[Flaw] = []
        self._values = 0
        self._events: Iterator[yaml.Event] = iter(())
        self._resolver: Any = yaml.resolver.Resolver()

    def add(self, place: Place, path: Path, message: str, *, hides: bool = False) -> None:
        self.flaws.append(Flaw(place, path, message, hides))

    def read(self, text: str) -> Node | None:
        # Pure Python on purpose: libyaml's places and messages differ.
        self._events = yaml.parse(text, Loader=yaml.SafeLoader)
        root: Node | None = None
        for event in self._events:
            if not isinstance(event, yaml.DocumentStartEvent):
                continue
            if root is not None:
                self.add(_place(event), (), "holds several documents: one policy per file, so no second ---")
                raise _Stop
            root = self._node(next(self._events), ())
        if root is None or (root.content is None and not self.flaws):
            self.add(Place(1, 1), (), "is empty")
            raise _Stop
        return root

    def _node(self, event: yaml.Event, path: Path) -> Node:
        place = _place(event)
        self._values += 1
        if self._values > MAX_VALUES:
            self.add(place, (), f"has more than {MAX_VALUES} values: this is no policy")
            raise _Stop
        if len(path) > MAX_DEPTH:
            self.add(place, (), f"is nested more than {MAX_DEPTH} levels deep: this is no policy")
            raise _Stop
        node = Node(place)
        if isinstance(event, yaml.AliasEvent):
            message = 'uses an alias (*name): write the value out, and text that starts with "*" in quotes'
            self.add(place, path, message, hides=True)
            return node
        if getattr(event, "anchor", None) is not None:
            message = 'uses an anchor (&name): write each value out, and text that starts with "&" in quotes'
            self.add(place, path, message, hides=True)
        if getattr(event, "tag", None) is not None:
            self.add(place, path, 'uses a tag: put text that starts with "!" in quotes', hides=True)
        if isinstance(event, yaml.MappingStartEvent):
            self._mapping(node, path)
        elif isinstance(event, yaml.SequenceStartEvent):
            node.content = []
            while not isinstance(event := next(self._events), yaml.SequenceEndEvent):
                node.content.append(self._node(event, (*path, len(node.content))))
        elif isinstance(event, yaml.ScalarEvent):
            node.content = self._scalar(event, path)
        return node

    def _mapping(self, node: Node, path: Path) -> None:
        node.content = {}
        while not isinstance(event := next(self._events), yaml.MappingEndEvent):
            place = _place(event)
            if not isinstance(event, yaml.ScalarEvent) or event.anchor is not None or event.tag is not None:
                self.add(place, path, "has a key that is not a plain word")
                if not isinstance(event, yaml.ScalarEvent):
                    self._node(event, (*path, ""))
                self._node(next(self._events), (*path, ""))
                continue
            key = event.value
            value = self._node(next(self._events), (*path, key))
            if key == "<<" and event.implicit[0]:
                self.add(place, path, "uses a merge key (<<): write the keys out")
            elif key in node.content:
                self.add(place, (*path, key), f"is given twice; the first is on line {node.keys[key].line}")
            else:
                node.content[key] = value
                node.keys[key] = place

    def _scalar(self, event: yaml.ScalarEvent, path: Path) -> object:
        text: str = event.value
        if not event.implicit[0]:  # quoted, or a block of text
            return text
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if _INTEGER.fullmatch(text):
            return int(text)
        if _DECIMAL.fullmatch(text):
            return float(text)
        kind = self._resolver.resolve(yaml.ScalarNode, text, (True, False)).removeprefix(_TAG)
        if kind == "bool":
            self.add(_place(event), path, "is ambiguous: write true or false, or put the word in quotes", hides=True)
        elif kind != "str" or _NUMBER_LIKE.fullmatch(text):
            self.add(
                _place(event),
                path,
                "is ambiguous: YAML readers differ about such numbers and dates; write plain decimal digits, "
                "or put it in quotes",
                hides=True,
            )
        return text


def _place(event: yaml.Event) -> Place:
    return _place_of(event.start_mark)


def _place_of(mark: Any) -> Place:
    return Place(mark.line + 1, mark.column + 1) if mark else Place(1, 1)
