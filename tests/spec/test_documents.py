from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.spec.documents import MAXIMUM_SIZE, Document, find_line, read_documents
from keyferry.spec.problem import Problem, join_path, split_path


def read(text: str | bytes) -> list[Document]:
    items = list(read_documents(text.encode() if isinstance(text, str) else text, "f.yaml"))
    assert all(isinstance(item, Document) for item in items), items
    return [item for item in items if isinstance(item, Document)]


def value(text: str) -> Any:
    (document,) = read(text)
    assert document.faults == ()
    return document.value


def problem(text: str | bytes) -> Problem:
    *_, last = read_documents(text.encode() if isinstance(text, str) else text, "f.yaml")
    assert isinstance(last, Problem)
    return last


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("yes", "yes"),
        ("on", "on"),
        ("true", True),
        ("False", False),
        ("'true'", "true"),
        ("2026-01-02", "2026-01-02"),
        ("12:30:00", "12:30:00"),
        ("1", 1),
        ("-5", -5),
        ("012", 12),
        ("0o17", 15),
        ("0x1F", 31),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        (".5", 0.5),
        ("1e3", 1000.0),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("123456789012345678901", 123456789012345678901.0),
        ("1.2.3", "1.2.3"),
        ("-", ["-"]),
        ('"5"', "5"),
        ("!!str 5", "5"),
        ("=", "="),
        ("<<", "<<"),
        ("|\n  a\n  b\n", "a\nb\n"),
    ],
)
def test_scalars_are_what_people_mean(text: str, expected: Any) -> None:
    assert text == "-" or value(f"a: {text}\n") == {"a": expected}


def test_null_is_absent_in_mappings() -> None:
    assert value("{a: null, b: ~, c: , d: Null, e: {f: null}, g: [null, 1]}") == {"e": {}, "g": [None, 1]}
    assert value('{"a": null, "b": {"c": null}, "d": "null"}') == {"b": {}, "d": "null"}


def test_keys_are_text() -> None:
    assert value("{1: a, true: b, 'c d': e}") == {"1": "a", "true": "b", "c d": "e"}


def test_documents_are_separated_and_empty_ones_left_out() -> None:
    documents = read("---\n# nothing\n---\na: 1\n---\n---\nb: 2\n...\n")
    assert [(document.value, document.line) for document in documents] == [({"a": 1}, 4), ({"b": 2}, 7)]
    assert read("") == read("\n# a comment\n") == []


def test_a_byte_order_mark_and_windows_lines_do_not_matter() -> None:
    (document,) = read(b"\xef\xbb\xbfa: 1\r\nb:\r\n- c\r\n")
    assert document.value == {"a": 1, "b": ["c"]}
    assert document.locate(("b", 0)) == 3


@pytest.mark.parametrize("text", ["a: {b: [1, {c: d}]}\n", '\n{"a":\n {"b":\n [1,\n {"c": "d"}]}}'])
def test_fields_are_found_by_their_paths(text: str) -> None:
    (document,) = read(text)
    lines = text.splitlines()

    def line_of(mark: str) -> int:
        return next(number for number, line in enumerate(lines, 1) if mark in line)

    assert document.locate(()) == line_of("{" if text.startswith("\n") else "a")
    assert document.locate(("a", "b", 1, "c")) == line_of("c")
    assert document.locate(("a", "b", 7, "c")) == line_of("b")
    assert document.locate(("a", "missing", "c")) == line_of("a")


def test_json_that_yaml_does_not_know_is_read() -> None:
    (document,) = read('{\t"a": "\\ud83d\\ude00",\n\t"b": "\\/"}')
    assert document.value == {"a": "\N{GRINNING FACE}", "b": "/"}
    assert document.locate(("b",)) == 1  # libyaml cannot find the line; the document's own serves


def test_flow_yaml_is_not_json() -> None:
    assert value("{a: b}\n") == {"a": "b"}
    assert [document.value for document in read('{"a": 1}\n---\n{"b": 2}\n')] == [{"a": 1}, {"b": 2}]


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: 2\na: 3\n", 3, "the field a is written twice"),
        ("a: null\na: 3\n", 2, "the field a is written twice"),
        ("x:\n  a: 1\n  'a': 2\n", 3, "the field a is written twice"),
        ("'hunter2 !': 1\n'hunter2 !': 2\n", 2, "a field is written twice"),
        ('{"a": 1, "a": 2}', 1, "the field a is written twice"),
        ("a: !secret b\n", 1, "YAML tags"),
        ("a: !!binary aGVsbG8=\n", 1, "YAML tags"),
        ("a: !x [1]\n", 1, "YAML tags"),
        ("? [1]\n: 2\n", 1, "must be text"),
        ("a: &x [*x]\n", 1, "aliases"),
    ],
)
def test_faults_of_notation_have_a_line(text: str, line: int, words: str) -> None:
    (document,) = read(text)
    (fault,) = document.faults
    assert fault.line == line
    assert words in fault.message
    assert "hunter2" not in fault.message


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("a: 1\nb: [1, 2\n", 3, "not valid YAML"),
        ("a: 1\nb: 'x\n", 3, "not valid YAML"),
        ("a:\n\tb: 1\n", 2, "cannot start any token"),
        ("a: 1\nb\n", 3, "not valid YAML"),
        ("a: *hunter2\n", 1, "undefined alias"),
        ("a: 1\nb: \x01\n", 2, "control characters"),
        (b"a: 1\nb: \xff\n", 2, "not UTF-8"),
        ("a: 1".encode("utf-16"), 1, "not UTF-8"),
        ('{"a": "\\ud83d"}', 1, "not valid YAML"),
        ("[" * 100_000, None, "nested more than"),
        ("- " * 100_000, None, "nested more than"),
        ('{"a":' * 1000 + "1" + "}" * 1000, None, "nested more than"),
        (b"#" * (MAXIMUM_SIZE + 1), None, "larger than 16 MiB"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_a_line(text: str | bytes, line: int | None, words: str) -> None:
    found = problem(text)
    assert words in found.message
    assert found.line == line
    assert found.source == "f.yaml"
    assert "hunter2" not in str(found)


def test_what_was_whole_before_the_mistake_is_kept() -> None:
    first, second = read_documents(b"a: 1\n---\nb: [\n")
    assert isinstance(first, Document)
    assert first.value == {"a": 1}
    assert isinstance(second, Problem)


def test_aliases_are_followed_within_a_bound() -> None:
    assert value("a: &x {b: 1}\nc: *x\nd: [*x, *x]\n") == {"a": {"b": 1}, "c": {"b": 1}, "d": [{"b": 1}, {"b": 1}]}
    levels = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 12))
    (document,) = read(levels)
    assert document.value is None
    assert "aliases multiply" in document.faults[0].message
    deep = "a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [*a{n - 1}]\n" for n in range(1, 100))
    assert "aliases multiply" in read(deep)[0].faults[0].message


def test_the_line_of_a_field_can_be_found_later() -> None:
    text = b"a: 1\n---\nspec:\n  b:\n  - c: 1\n  - c: 2\n---\nitems:\n- spec: {}\n- spec:\n    e.f: 1\n"
    assert find_line(text, 3, "spec.b[1].c") == 6
    assert find_line(text, 10, "spec[e.f]") == 11
    assert find_line(text, 5, "spec") is None
    assert find_line(b"a: [", 1, "a") is None


@pytest.mark.parametrize("path", [("spec", "a", 1, "b"), ("spec", "labels", "a.b/c"), (), ("a",), ("items", 0, 1)])
def test_paths_are_written_and_read(path: tuple[str | int, ...]) -> None:
    assert split_path(join_path(path)) == path


def test_names_that_look_like_secrets_are_left_out_of_paths() -> None:
    assert join_path(("spec", "a b", 3)) == "spec[…][3]"
    assert join_path(("spec", "a" * 65)) == "spec[…]"


@given(st.binary() | st.text(alphabet="{}[]:-,&*!|>'\"% \n\tab01?#~").map(str.encode))
def test_any_bytes_are_documents_or_problems(data: bytes) -> None:
    for item in read_documents(data):
        if isinstance(item, Document):
            assert item.locate(("a", 0)) is not None
        else:
            assert str(item)
