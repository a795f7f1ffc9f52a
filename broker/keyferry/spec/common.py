"""What the models of all resources are made of.

Names, descriptions, defaults, choices, patterns and bounds are written once, in the fields of these models; the CRDs
and ``docs/reference.md`` are made from them.
"""

import enum
import re
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, Final, NamedTuple, Self
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ModelWrapValidatorHandler,
    PlainSerializer,
    WithJsonSchema,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from keyferry.spec.durations import DURATION_MIN_LENGTH, DURATION_PATTERN, format_duration, parse_duration
from keyferry.spec.frozen import FrozenMap

MISTAKES: Final = "keyferry_mistakes"
"""The type of the pydantic error that carries :class:`Mistake` values in its context."""
SHORTEST_TOKEN_REQUEST: Final = 600
"""Seconds; the API server grants no shorter token of a ServiceAccount."""
RULE: Final = "keyferry_rule"
"""The type of the pydantic error of one value that breaks a rule in words."""


class Mistake(NamedTuple):
    """A mistake between the fields of a model: the path below it (names as in YAML), and what is wrong."""

    path: tuple[str | int, ...]
    message: str


class Model(BaseModel):
    """A frozen part of a resource: snake_case in Python, camelCase in YAML, unknown fields refused."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True, hide_input_in_errors=True
    )

    @classmethod
    def alias_of(cls, name: str) -> str:
        """Return the YAML name of a field."""
        return cls.model_fields[name].alias or name

    def is_set(self, name: str) -> bool:
        """Tell whether a field differs from its default (that it was written out does not matter)."""
        return bool(getattr(self, name) != type(self).model_fields[name].default)


class CheckedModel(Model):
    """A model whose fields must fit each other; all mistakes are found at once."""

    @abstractmethod
    def mistakes(self) -> Iterator[Mistake]:
        """Yield what is wrong between fields that are each right by themselves."""

    @model_validator(mode="wrap")
    @classmethod
    def _find_mistakes(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        if type(value) is cls:
            return value  # frozen, so it is still as right as it was when it was made
        checked = handler(value)
        found = tuple(checked.mistakes())
        if found:
            raise PydanticCustomError(MISTAKES, "the fields do not fit each other", {"mistakes": found})
        return checked

    def exactly_one(self, *names: str) -> Iterator[Mistake]:
        """Yield a mistake unless exactly one of the fields is set."""
        chosen = [self.alias_of(name) for name in names if getattr(self, name) is not None]
        choices = ", ".join(self.alias_of(name) for name in names)
        if not chosen:
            yield Mistake((), f"needs exactly one of {choices}")
        for extra in chosen[1:]:
            yield Mistake((extra,), f"must not stand beside {chosen[0]}: exactly one of {choices} is allowed")

    def members(self, union: "Union") -> Iterator[Mistake]:
        """Yield a mistake for each member that the chosen type lacks, and for each that belongs to another type."""
        choice = getattr(self, union.selector)
        label = f"{self.alias_of(union.selector)}: {choice}"
        for name in union.needed[choice]:
            if not self.is_set(name):
                purpose = first_sentence(type(self).model_fields[name].description or "")
                yield Mistake((self.alias_of(name),), f"is missing; {label} needs it: {purpose}")
        for name in union.foreign[choice]:
            if self.is_set(name):
                owners = " or ".join(union.owners(name))
                yield Mistake((self.alias_of(name),), f"does not belong to {label}; it belongs to {owners}")


class Members(NamedTuple):
    """The fields that go with one choice of a union."""

    needs: tuple[str, ...] = ()
    takes: tuple[str, ...] = ()


class Union:
    """Which members go with which choice of a selecting field."""

    def __init__(self, selector: str, rules: Mapping[Any, Members]) -> None:
        self.selector = selector
        self._rules = rules
        names = dict.fromkeys(name for members in rules.values() for name in members.needs + members.takes)
        self.needed = {choice: members.needs for choice, members in rules.items()}
        self.foreign = {
            choice: tuple(name for name in names if name not in members.needs + members.takes)
            for choice, members in rules.items()
        }

    def owners(self, name: str) -> list[str]:
        """Return the choices that a member belongs to."""
        return [str(choice) for choice, members in self._rules.items() if name in members.needs + members.takes]


def first_sentence(text: str) -> str:
    """Return a description's first sentence without its full stop."""
    return text.split(". ", 1)[0].rstrip(".")


def rule_error(message: str) -> PydanticCustomError:
    """Return the error of a value that breaks a rule; the message must not hold the value."""
    return PydanticCustomError(RULE, "{message}", {"message": message})


# --- single values ---------------------------------------------------------------------------------------------------

NAME_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
LABEL_PATTERN: Final = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
KEY_PATTERN: Final = r"^\.?[-_a-zA-Z0-9][-._a-zA-Z0-9]*$"
SCOPE_PATTERN: Final = r"^[\x21\x23-\x5b\x5d-\x7e]+$"
URI_PATTERN: Final = r"^[A-Za-z][A-Za-z0-9+.-]*:[\x21\x22\x24-\x7e]+$"
URL_PATTERN: Final = r"^https?://[A-Za-z0-9.:_\[\]-]+(/[\x21-\x22\x24-\x3e\x40-\x7e]*)?(\?[\x21\x22\x24-\x7e]*)?$"
ISSUER_PATTERN: Final = r"^https?://[A-Za-z0-9.:_\[\]-]+(/[\x21-\x22\x24-\x3e\x40-\x7e]*)?$"
TEXT_PATTERN: Final = r"^[^\x00-\x1f\x7f]+$"
VARIABLE_PATTERN: Final = r"^[A-Za-z_][A-Za-z0-9_]*$"
PARAMETER_PATTERN: Final = r"^[-._a-zA-Z0-9]+$"
QUALIFIED_PATTERN: Final = (
    r"^([a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*/)?[A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?$"
)
LABEL_VALUE_PATTERN: Final = r"^([A-Za-z0-9]([-._A-Za-z0-9]*[A-Za-z0-9])?)?$"
METHOD_PATTERN: Final = r"^[a-z][a-z0-9_]*[a-z_]$"

PATTERN_WORDS: Final[Mapping[str, str]] = {
    NAME_PATTERN: "must be a DNS-1123 name: lower-case letters, digits, '-' and '.', beginning and ending with a "
    "letter or digit",
    LABEL_PATTERN: "must be a DNS-1123 label: lower-case letters, digits and '-', beginning and ending with a letter "
    "or digit",
    KEY_PATTERN: "may hold letters, digits, '-', '_' and '.' only, and must not be '.' or begin with '..'",
    SCOPE_PATTERN: "must be one scope (RFC 6749 3.3: printable ASCII without space, '\"' and '\\'); several scopes are "
    "several items of the list",
    URI_PATTERN: "must be an absolute URI without a fragment, such as https://api.example.org/ or urn:example:api",
    TEXT_PATTERN: "must not be empty or hold control characters",
    VARIABLE_PATTERN: "must be a variable name: letters, digits and '_', not beginning with a digit",
    PARAMETER_PATTERN: "must be a parameter name (RFC 6749 8.2: letters, digits, '-', '.' and '_')",
    QUALIFIED_PATTERN: "must be a label key: letters, digits, '-', '_' and '.', with an optional 'domain/' before it",
    LABEL_VALUE_PATTERN: "must be a label value: letters, digits, '-', '_' and '.', beginning and ending with a letter "
    "or digit",
    METHOD_PATTERN: "must be a LabArchives API method name, such as entry_attachment",
}
"""What a pattern asks for, in words."""


def _read_duration(value: object) -> float:
    if not isinstance(value, str):
        raise rule_error("must be a duration with its unit, such as 90s, 10m, 1h30m or 7d")
    try:
        return parse_duration(value)
    except ValueError as error:
        raise rule_error(str(error)) from None


def _read_positive(value: object) -> float:
    seconds = _read_duration(value)
    if seconds <= 0:
        raise rule_error("must be longer than 0s")
    return seconds


def _read_token_lifetime(value: object) -> float:
    seconds = _read_duration(value)
    if seconds < SHORTEST_TOKEN_REQUEST:
        raise rule_error("must be at least 10m, the least that the API server grants")
    return seconds


_WRITE_DURATION: Final = PlainSerializer(format_duration, return_type=str)
_DURATION_SCHEMA: Final = WithJsonSchema(
    {"type": "string", "pattern": DURATION_PATTERN, "minLength": DURATION_MIN_LENGTH}
)
# One validator each: with a second one around it, JSON schemas would show the default as a number.
Duration = Annotated[float, BeforeValidator(_read_duration), _WRITE_DURATION, _DURATION_SCHEMA]
"""Seconds; in YAML a text such as ``1h30m``."""
PositiveDuration = Annotated[float, BeforeValidator(_read_positive), _WRITE_DURATION, _DURATION_SCHEMA]
"""A duration longer than zero."""
TokenRequestDuration = Annotated[float, BeforeValidator(_read_token_lifetime), _WRITE_DURATION, _DURATION_SCHEMA]
"""A lifetime that the API server grants."""


def _check_url(value: str, *, query: bool) -> str:
    """Refuse what is not an absolute http(s) URL, each fault in its own words; open hosts are decided on later."""
    try:
        parts = urlsplit(value)
        _ = parts.port
    except ValueError:
        raise rule_error("is not a valid URL (check the host and the port)") from None
    if parts.scheme not in {"http", "https"} or not parts.hostname or not value.startswith(parts.scheme):
        raise rule_error("must be an absolute URL that begins with https:// (or http://)")
    if "@" in parts.netloc:
        raise rule_error("must not hold a user name or password; credentials come from a Secret")
    if "#" in value:
        raise rule_error("must not hold a fragment ('#')")
    if "?" in value and not query:
        raise rule_error("must not hold a query ('?')")
    if not re.fullmatch((URL_PATTERN if query else ISSUER_PATTERN).replace("$", r"\Z"), value):
        raise rule_error("may hold printable ASCII characters only, and no spaces")
    return value


def _check_plain_url(value: str) -> str:
    return _check_url(value, query=False)


def _check_endpoint_url(value: str) -> str:
    return _check_url(value, query=True)


LONGEST_URL: Final = 2048
Issuer = Annotated[
    str,
    Field(max_length=LONGEST_URL, json_schema_extra={"pattern": ISSUER_PATTERN}),
    AfterValidator(_check_plain_url),
]
"""An absolute http(s) URL without user, query or fragment (RFC 8414 2)."""
Url = Annotated[
    str,
    Field(max_length=LONGEST_URL, json_schema_extra={"pattern": URL_PATTERN}),
    AfterValidator(_check_endpoint_url),
]
"""An absolute http(s) URL without user or fragment."""

Name = Annotated[str, Field(pattern=NAME_PATTERN, max_length=253)]
"""The name of a Kubernetes object (DNS-1123 subdomain)."""
Key = Annotated[str, Field(pattern=KEY_PATTERN, max_length=253)]
"""A key of a Secret or ConfigMap."""
Scope = Annotated[str, Field(pattern=SCOPE_PATTERN, max_length=256)]
Uri = Annotated[str, Field(pattern=URI_PATTERN, max_length=LONGEST_URL)]
Text = Annotated[str, Field(pattern=TEXT_PATTERN, max_length=1024)]
"""One non-empty line."""
Flag = Annotated[bool, Field(strict=True)]
Count = Annotated[int, Field(strict=True)]

LabelKey = Annotated[str, Field(pattern=QUALIFIED_PATTERN, max_length=317)]
LabelValue = Annotated[str, Field(pattern=LABEL_VALUE_PATTERN, max_length=63)]
Labels = Annotated[Mapping[LabelKey, LabelValue], Field(max_length=64), AfterValidator(FrozenMap)]
Annotations = Annotated[
    Mapping[LabelKey, Annotated[str, Field(max_length=4096)]], Field(max_length=64), AfterValidator(FrozenMap)
]


# --- references ------------------------------------------------------------------------------------------------------


class SecretKeyRef(Model):
    """One value of a Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret.")
    key: Key = Field(description="Key within the Secret.")


class ConfigMapKeyRef(Model):
    """One value of a ConfigMap in the same namespace."""

    name: Name = Field(description="Name of the ConfigMap.")
    key: Key = Field(description="Key within the ConfigMap.")


class SecretRef(Model):
    """A whole Secret in the same namespace."""

    name: Name = Field(description="Name of the Secret.")


class SecretKeySource(Model):
    """Where a credential comes from."""

    secret_key_ref: SecretKeyRef = Field(description="The Secret and key that hold the value.")


class CaSource(CheckedModel):
    """Where CA certificates (PEM) come from; exactly one of its fields."""

    secret_key_ref: SecretKeyRef | None = Field(default=None, description="The Secret and key that hold the PEM text.")
    config_map_key_ref: ConfigMapKeyRef | None = Field(
        default=None, description="The ConfigMap and key that hold the PEM text."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Find both, or neither."""
        yield from self.exactly_one("secret_key_ref", "config_map_key_ref")


class ServiceAccountToken(Model):
    """A token that the cluster signs for a ServiceAccount (TokenRequest)."""

    name: Name = Field(description="Name of the ServiceAccount.")
    audience: Text = Field(
        description="Audience of the token: who is to accept it. Never one that the API server accepts."
    )
    expiration: TokenRequestDuration = Field(
        default=float(SHORTEST_TOKEN_REQUEST), description="Lifetime asked for; the API server gives no less than 10m."
    )


class IdentityRef(Model):
    """Another ServiceIdentity of the same namespace, which must consent in its consumers."""

    name: Annotated[str, Field(pattern=NAME_PATTERN, max_length=63)] = Field(description="Name of the ServiceIdentity.")


class Subject(CheckedModel):
    """A token that is presented to obtain another; exactly one of its fields."""

    service_account_token: ServiceAccountToken | None = Field(
        default=None, description="A token of a ServiceAccount, asked of the API server for each use."
    )
    secret_key_ref: SecretKeyRef | None = Field(default=None, description="A token kept in a Secret, read at each use.")
    identity_ref: IdentityRef | None = Field(
        default=None, description="The current access token of another ServiceIdentity."
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Find more or less than one."""
        yield from self.exactly_one("service_account_token", "secret_key_ref", "identity_ref")


class CamelEnum(enum.StrEnum):
    """An enumeration whose values are the CamelCase words of the contract."""
