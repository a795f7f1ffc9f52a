from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from keyferry.spec.template import PLACEHOLDERS, Literal, Placeholder, Template, TemplateError, parse_template

VALUES = {name: f"<{name}>" for name in PLACEHOLDERS}


@pytest.mark.parametrize(
    ("text", "filled"),
    [
        ("", ""),
        ("plain $ $$ $x {y}", "plain $ $$ $x {y}"),
        ("a ${access_token} b", "a <access_token> b"),
        ("${scope}${issuer}", "<scope><issuer>"),
        ("$${access_token}", "${access_token}"),
        ("$$${access_token}", "$${access_token}"),
        ("$${${subject}}", "${<subject>}"),
        ("a}b", "a}b"),
    ],
)
def test_placeholders_are_replaced_and_everything_else_stays(text: str, filled: str) -> None:
    assert parse_template(text).fill(VALUES) == filled


def test_parts_are_parsed_once() -> None:
    template = parse_template("a${revision}b")
    assert template == Template((Literal("a"), Placeholder("revision"), Literal("b")))
    assert template.names == {"revision"}
    assert parse_template("a${revision}b") is template


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("${acces_token}", 1, r"did you mean \$\{access_token\}"),
        ("\n\n${nothing}", 3, "known: access_token, id_token"),
        ("${}", 1, "a name, which is not known"),
        ("x\n${access_token", 2, "never closed"),
        ("${ access_token }", 1, "not known"),
    ],
)
def test_mistakes_name_the_line(text: str, line: int, words: str) -> None:
    with pytest.raises(TemplateError, match=words) as caught:
        parse_template(text)
    assert caught.value.line == line


def test_what_might_be_a_secret_is_not_repeated() -> None:
    with pytest.raises(TemplateError) as caught:
        parse_template("${hunter2 is my password}")
    assert "hunter2" not in str(caught.value)


@given(st.text(alphabet="${}a\n") | st.text())
def test_any_text_is_a_template_or_a_mistake(text: str) -> None:
    try:
        template = parse_template(text)
    except TemplateError:
        assert "${" in text
    else:
        assert template.fill(dict.fromkeys(PLACEHOLDERS, "")).count("$") <= text.count("$")
