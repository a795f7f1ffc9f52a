"""Untrusted YAML or JSON bytes to plain values, quickly, and to the line of any field.

The YAML is read as people mean it, which is close to YAML 1.2: ``yes``, ``on`` and dates are text; ``null`` is
absent; keys are text; a key that is written twice is a mistake; tags are refused. Aliases are followed within a bound,
nesting is bounded (libyaml's composer would overflow the C stack), and so is the size.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, cast

import yaml
from yaml._yaml import CParser
from yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode

from keyferry.spec.problem import Problem, split_path

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

MAXIMUM_SIZE: Final = 16 * 1024 * 1024
"""Bytes of one file."""
MAXIMUM_DEPTH: Final = 64
"""Levels of nesting; the deepest resource has about ten."""
MAXIMUM_REPEATS: Final = 10_000
"""Values that aliases may add to one document."""

_MEMO_LENGTH: Final = 64
_MEMO_ENTRIES: Final = 100_000
_SHOWN_KEY: Final = re.compile(r"[A-Za-z0-9_.\-/]{1,40}")
_WORDS: Final[dict[str, Any]] = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_NUMBER: Final = re.compile(
    r"(?P<integer>[-+]?[0-9]{1,18})|0o(?P<octal>[0-7]{1,18})|0x(?P<hexadecimal>[0-9a-fA-F]{1,15})"
    r"|(?P<float>[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?)"
    r"|(?P<special>[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))"
)
_PLAIN_TAGS: Final = frozenset({"tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"})


class Fault(NamedTuple):
    """A mistake of notation inside one document, and its line."""

    line: int
    message: str


@dataclass(slots=True)
class Document:
    """One document: its value (mappings without their null fields), and what is wrong with its notation."""

    value: Any
    line: int | None
    """The line where it begins, counted from 1; None where it came from no file."""
    faults: tuple[Fault, ...]
    _node: Callable[[], Node | None]

    def locate(self, path: tuple[str | int, ...]) -> int | None:
        """Return the line of a field, or of the nearest field around it that exists."""
        node = self._node()
        line = self.line
        for part in path:
            found = _step(node, part)
            if found is None:
                break
            line, node = found
        return line


def read_documents(data: bytes, source: str = "") -> Iterator[Document | Problem]:
    """Yield the documents of a file; a Problem ends it, where the rest cannot be read. Empty documents are left out."""
    if len(data) > MAXIMUM_SIZE:
        yield Problem("", f"the file is larger than {MAXIMUM_SIZE // 1024 // 1024} MiB", source=source)
        return
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        yield Problem("", "the file is not UTF-8 text", source=source, line=line)
        return
    if text.lstrip()[:1] in {"{", "["}:
        document = _read_json(text)
        if document is not None:
            yield document
            return
    yield from _read_yaml(text, source)


def find_line(data: bytes, line: int, path: str) -> int | None:
    """Return the line of a field of the resource that begins at ``line``, by reading the file again.

    For problems that are found long after the file was read, such as those between an identity and its provider.
    """
    found = _find(data, line)
    return found[0].locate((*found[1], *split_path(path))) if found is not None else None


def find_value(data: bytes, line: int) -> Any:
    """Return the resource that begins at ``line`` as it is written, but for null fields; None where there is none."""
    found = _find(data, line)
    if found is None:
        return None
    document, base = found
    return document.value["items"][base[1]] if base else document.value


def _find(data: bytes, line: int) -> tuple[Document, tuple[()] | tuple[str, int]] | None:
    """Find the resource that begins at ``line``: its document, and where in it the resource is."""
    for document in read_documents(data):
        if isinstance(document, Problem) or document.line is None or document.line > line:
            break
        items = document.value.get("items") if isinstance(document.value, dict) else None
        bases: list[tuple[()] | tuple[str, int]] = [(), *(("items", index) for index in range(len(items or ())))]
        for base in bases:
            if document.locate(base) == line:
                return document, base
    return None


# --- YAML ------------------------------------------------------------------------------------------------------------


class _NestingError(Exception):
    """The document is nested more deeply than is read."""


class _Composer(CParser):
    """libyaml's nodes without PyYAML's tag resolution, which costs more than the parsing; and with bounded nesting."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0

    def resolve(self, _kind: object, _value: object, _implicit: object) -> str:
        return ""

    def descend_resolver(self, _parent: object, _index: object) -> None:
        self._depth += 1
        # A key and its value are below the mapping, and the document's root is level one.
        if self._depth > MAXIMUM_DEPTH:
            raise _NestingError

    def ascend_resolver(self) -> None:
        self._depth -= 1


def _read_yaml(text: str, source: str) -> Iterator[Document | Problem]:
    builder = _Builder(aliases="&" in text)
    try:
        composer = _Composer(text)
        while composer.check_node():
            document = builder.document(cast("Node", composer.get_node()))
            if document.value is not None or document.faults:
                yield document
    except _NestingError:
        yield Problem("", f"the file is nested more than {MAXIMUM_DEPTH} levels deep", source=source)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = None if mark is None else min(mark.line + 1, text.count("\n") + 1)
        # What stands in quotes comes from the file (an alias's name) and might be a secret.
        words = re.sub(r"'[^']{2,}'|\"[^\"]{2,}\"", "…", str(error.problem))
        yield Problem("", f"not valid YAML: {words}", source=source, line=line)
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1 if isinstance(error.position, int) else None
        yield Problem("", "not valid YAML: control characters are not allowed", source=source, line=line)
    except yaml.YAMLError:
        yield Problem("", "not valid YAML", source=source)


class _Builder:
    """Turns nodes into values. Equal short texts become one object, which makes 10,000 resources a third smaller."""

    def __init__(self, *, aliases: bool) -> None:
        self._aliases = aliases
        self._keys: dict[str, str] = {}
        self._plain: dict[str, Any] = dict(_WORDS)
        self._faults: list[Fault] = []

    def document(self, node: Node) -> Document:
        self._faults = []
        value = None
        if not self._aliases or self._aliases_are_bounded(node):
            value = self._build(node)
        return Document(value, node.start_mark.line + 1, tuple(self._faults), lambda: node)

    def _build(self, node: Node) -> Any:
        kind = type(node)
        if kind is ScalarNode:
            return self._scalar(cast("ScalarNode", node))
        if node.tag and node.tag not in _PLAIN_TAGS:
            return self._refuse_tag(node)
        if kind is MappingNode:
            return self._mapping(node)
        build = self._build
        return [build(item) for item in node.value]

    def _mapping(self, node: Node) -> dict[str, Any]:
        result: dict[str, Any] = {}
        keys = self._keys
        absent = False
        for key_node, value_node in node.value:
            if type(key_node) is not ScalarNode:
                self._faults.append(Fault(key_node.start_mark.line + 1, "a field's name must be text"))
                continue
            key = keys.setdefault(key_node.value, key_node.value)
            if key in result:
                self._faults.append(Fault(key_node.start_mark.line + 1, _duplicate(key)))
            value = self._scalar(value_node) if type(value_node) is ScalarNode else self._build(value_node)
            absent = absent or value is None
            result[key] = value
        if absent:
            return {key: value for key, value in result.items() if value is not None}
        return result

    def _scalar(self, node: ScalarNode) -> Any:
        text = node.value
        if node.tag:
            return text if node.tag in _PLAIN_TAGS else self._refuse_tag(node)
        if node.style:  # quoted, literal or folded
            return self._keys.setdefault(text, text) if self._worth_sharing(text, self._keys) else text
        memo = self._plain
        if text in memo:
            return memo[text]
        value = _plain(text)
        if self._worth_sharing(text, memo):
            memo[text] = value
        return value

    def _refuse_tag(self, node: Node) -> None:
        self._faults.append(Fault(node.start_mark.line + 1, "YAML tags ('!…') are not supported"))

    @staticmethod
    def _worth_sharing(text: str, memo: dict[str, Any]) -> bool:
        return len(text) <= _MEMO_LENGTH and len(memo) < _MEMO_ENTRIES

    def _aliases_are_bounded(self, root: Node) -> bool:
        """Walk the document as it would be built, and stop early where aliases multiply or contain themselves."""
        seen: set[int] = set()
        repeats = 0
        waiting: list[tuple[Node, int]] = [(root, 1)]
        while waiting:
            node, depth = waiting.pop()
            repeats += id(node) in seen
            if repeats > MAXIMUM_REPEATS or depth > MAXIMUM_DEPTH:
                self._faults.append(Fault(root.start_mark.line + 1, "YAML aliases multiply or contain themselves"))
                return False
            seen.add(id(node))
            if isinstance(node, MappingNode):
                waiting.extend((part, depth + 1) for pair in node.value for part in pair)
            elif isinstance(node, SequenceNode):
                waiting.extend((item, depth + 1) for item in node.value)
        return True


def _plain(text: str) -> Any:
    """Resolve an unquoted scalar by YAML 1.2's core schema (10.3.2), without numbers too long for an int."""
    if text[0] not in "+-.0123456789":
        return text
    match = _NUMBER.fullmatch(text)
    if match is None:
        return text
    digits = match[match.lastgroup or 0]
    if match.lastgroup == "integer":
        return int(digits)
    if match.lastgroup == "octal":
        return int(digits, 8)
    if match.lastgroup == "hexadecimal":
        return int(digits, 16)
    return float(digits.replace(".", "") if match.lastgroup == "special" else digits)


def _duplicate(key: str) -> str:
    shown = f"the field {key}" if _SHOWN_KEY.fullmatch(key) else "a field"
    return f"{shown} is written twice"


def _step(node: Node | None, part: str | int) -> tuple[int, Node] | None:
    if isinstance(part, int) and isinstance(node, SequenceNode) and part < len(node.value):
        item = node.value[part]
        return item.start_mark.line + 1, item
    if isinstance(part, str) and isinstance(node, MappingNode):
        for key_node, value_node in node.value:
            if key_node.value == part:
                return key_node.start_mark.line + 1, value_node
    return None


# --- JSON ------------------------------------------------------------------------------------------------------------


def _read_json(text: str) -> Document | None:
    """Read one JSON document; None where it is none (flow YAML also begins with a bracket)."""
    duplicates: list[str] = []

    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(items)
        if len(result) < len(items):
            counts = Counter(key for key, _ in items)
            duplicates.extend(key for key, count in counts.items() if count > 1)
        return {key: value for key, value in result.items() if value is not None}

    def refuse(_: str) -> float:
        raise ValueError

    try:
        value = json.loads(text, object_pairs_hook=pairs, parse_constant=refuse)
    except (ValueError, RecursionError):
        return None
    if _depth(value) > MAXIMUM_DEPTH or (r"\u" in text and not _is_unicode(value)):
        return None
    faults = tuple(Fault(1, _duplicate(key)) for key in duplicates)
    return Document(value, text[: len(text) - len(text.lstrip())].count("\n") + 1, faults, lambda: _compose(text))


def _depth(value: Any) -> int:
    deepest = 0
    waiting = [(value, 1)]
    while waiting:
        item, depth = waiting.pop()
        deepest = max(deepest, depth)
        children = item.values() if isinstance(item, dict) else item if isinstance(item, list) else ()
        waiting.extend((child, depth + 1) for child in children)
    return deepest


def _is_unicode(value: Any) -> bool:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _compose(text: str) -> Node | None:
    """Read JSON as YAML, for its line numbers; None for the rare JSON that libyaml does not read."""
    try:
        node: Node | None = _Composer(text).get_single_node()
    except (yaml.YAMLError, _NestingError):
        return None
    return node
