"""Pydantic's errors in people's words.

Pydantic's own texts repeat the input, which may be a secret in the wrong place; none of them is used. What a message
shows of the input is a field's name, or the short value of a field that has a fixed list of choices.
"""

import difflib
import enum
import functools
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Final, get_args

from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from keyferry.spec.common import MISTAKES, PATTERN_WORDS, RULE, Mistake, Model, first_sentence

_SHOWN: Final = re.compile(r"[A-Za-z0-9_.:/-]{1,40}")
_HIDING: Final = re.compile(r"secret|password|token", re.IGNORECASE)
_LISTED_FIELDS: Final = 16


def explain(error: ValidationError, model: type[Model]) -> list[Mistake]:
    """Return the mistakes of a failed validation, in the order of the fields; paths are those below ``model``."""
    found: list[Mistake] = []
    errors = error.errors(include_url=False)
    for details in errors:
        path = tuple(part for part in details["loc"] if part != "[key]")
        if details["type"] == "too_short" and any(_is_below(other["loc"], details["loc"]) for other in errors):
            continue  # pydantic counts the valid items only; the others have their own mistakes
        if details["type"] == MISTAKES:
            found.extend(Mistake((*path, *below), message) for below, message in details["ctx"]["mistakes"])
        else:
            found.append(Mistake(path, _message(details, path, model)))
    return found


def _is_below(inner: tuple[str | int, ...], outer: tuple[str | int, ...]) -> bool:
    return len(inner) > len(outer) and inner[: len(outer)] == outer


def closest(name: str, choices: Iterable[str]) -> str | None:
    """Return the choice that a name was probably meant to be; case, ``-`` and ``_`` do not matter."""
    plain = {_flatten(choice): choice for choice in choices}
    close = difflib.get_close_matches(_flatten(name), plain, n=1, cutoff=0.7)
    return plain[close[0]] if close else None


def _flatten(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _message(details: ErrorDetails, path: tuple[str | int, ...], model: type[Model]) -> str:
    words = _WORDS.get(details["type"])
    if words is not None:
        return words(details.get("ctx", {}))
    match details["type"]:
        case "missing":
            message = f"is missing: {_purpose(model, path)}"
        case "extra_forbidden":
            message = _unknown_field(model, path)
        case "enum":
            message = _wrong_choice(details["input"], model, path)
        case "string_type":
            message = _not_text(details["input"])
        case "model_type" | "model_attributes_type" | "dict_type" | "mapping_type":
            message = _not_mapping(model, path)
        case _:
            message = "is not valid"
    return message


_WORDS: Final[Mapping[str, Callable[[Mapping[str, Any]], str]]] = {
    RULE: lambda context: str(context["message"]),
    "tuple_type": lambda _: "must be a list, such as [a, b]",
    "bool_type": lambda _: "must be true or false (without quotes)",
    "int_type": lambda _: "must be a whole number (without quotes)",
    "int_from_float": lambda _: "must be a whole number",
    "float_type": lambda _: "must be a number (without quotes)",
    "finite_number": lambda _: "must be a finite number",
    "greater_than": lambda context: f"must be greater than {context['gt']:g}",
    "greater_than_equal": lambda context: f"must be at least {context['ge']:g}",
    "less_than": lambda context: f"must be less than {context['lt']:g}",
    "less_than_equal": lambda context: f"must be at most {context['le']:g}",
    "string_pattern_mismatch": lambda context: PATTERN_WORDS.get(context["pattern"], "has characters not allowed here"),
    "string_too_short": lambda context: f"must have at least {context['min_length']} characters",
    "string_too_long": lambda context: f"must have at most {context['max_length']} characters",
    "string_unicode": lambda _: "must be valid Unicode text",
    "too_short": lambda _: "must not be empty; leave the field out instead",
    "too_long": lambda context: f"must have at most {context['max_length']} items",
}


def _purpose(model: type[Model], path: tuple[str | int, ...]) -> str:
    field = field_at(model, path)
    return first_sentence(field.description or "") if field is not None else "a field that is needed"


def _unknown_field(model: type[Model], path: tuple[str | int, ...]) -> str:
    name = str(path[-1])
    parent = model_at(model, path[:-1]) or model
    names = list(aliases(parent))
    meant = closest(name, names)
    if meant is not None:
        return f"is not a known field; did you mean {meant}?"
    elsewhere = [place for place in _places(model).get(_flatten(name), ()) if place]
    if len(elsewhere) == 1:
        return f"is not a known field here; it belongs to {elsewhere[0]}"
    if len(names) <= _LISTED_FIELDS:
        return f"is not a known field; known here: {', '.join(names)}"
    return "is not a known field"


def _wrong_choice(value: object, model: type[Model], path: tuple[str | int, ...]) -> str:
    choices = choices_of(field_at(model, path))
    listed = f"must be one of {', '.join(choices)}"
    name = next((part for part in reversed(path) if isinstance(part, str)), "")
    if not isinstance(value, str) or not _SHOWN.fullmatch(value) or _HIDING.search(name):
        return listed
    meant = closest(value, choices)
    return f"{listed}, not {value}" + (f"; did you mean {meant}?" if meant is not None else "")


def _not_text(value: object) -> str:
    if isinstance(value, bool | int | float):
        return "must be text: put it in quotes"
    return "must be text" if value is not None else "must be text, not null"


def _not_mapping(model: type[Model], path: tuple[str | int, ...]) -> str:
    inner = model_at(model, path)
    if inner is None:
        return "must be a mapping of names to values"
    return f"must be a mapping with the fields {', '.join(aliases(inner))}"


# --- finding one's way in the models ---------------------------------------------------------------------------------


@functools.cache
def aliases(model: type[Model]) -> Mapping[str, FieldInfo]:
    """Return a model's fields by their YAML names."""
    return {field.alias or name: field for name, field in model.model_fields.items()}


def model_at(model: type[Model], path: tuple[str | int, ...]) -> type[Model] | None:
    """Return the model that a path leads to; None where it leads to a single value or nowhere."""
    if not path:
        return model
    field = field_at(model, path)
    return next(_models_in(field.annotation), None) if field is not None else None


def field_at(model: type[Model], path: tuple[str | int, ...]) -> FieldInfo | None:
    """Return the field that a path leads to; an item of a list or mapping counts as its field."""
    here: type[Model] | None = model
    field: FieldInfo | None = None
    for part in path:
        if isinstance(part, int):
            continue
        if here is None:
            return field
        field = aliases(here).get(part)
        if field is None:
            return None
        here = next(_models_in(field.annotation), None)
    return field


def choices_of(field: FieldInfo | None) -> list[str]:
    """Return the choices of a field whose values are an enumeration."""
    kinds = _types_in(field.annotation) if field is not None else iter(())
    return [str(member) for kind in kinds if issubclass(kind, enum.StrEnum) for member in kind]


def _models_in(annotation: Any) -> Iterator[type[Model]]:
    return (kind for kind in _types_in(annotation) if issubclass(kind, Model))


def _types_in(annotation: Any) -> Iterator[type]:
    if isinstance(annotation, type) and not get_args(annotation):
        yield annotation
    for inner in get_args(annotation):
        yield from _types_in(inner)


@functools.cache
def _places(model: type[Model]) -> Mapping[str, tuple[str, ...]]:
    """Return, for each field's name, the paths of the models below ``model`` that have it."""
    found: dict[str, list[str]] = {}
    waiting: list[tuple[type[Model], str]] = [(model, "")]
    while waiting:
        here, path = waiting.pop()
        for name, field in aliases(here).items():
            found.setdefault(_flatten(name), []).append(path)
            inner = next(_models_in(field.annotation), None)
            if inner is not None:
                waiting.append((inner, f"{path}.{name}" if path else name))
    return {name: tuple(paths) for name, paths in found.items()}
