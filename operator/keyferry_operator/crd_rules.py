"""What a schema cannot say, as CEL rules that the API server checks (``x-kubernetes-validations``).

Most rules are made from the tables by which the models check themselves. A rule that compares with a default takes the
default from the model, for the schemas set none (see :mod:`keyferry_operator.crd_schema`). Only what the CEL of
Kubernetes 1.28 knows is used. Every text, list and mapping of the spec is bounded, so that the API server can bound
what the rules cost.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from keyferry.spec.common import (
    SHORTEST_TOKEN_REQUEST,
    CaSource,
    Duration,
    Issuer,
    Model,
    PositiveDuration,
    Subject,
    TokenRequestDuration,
    Union,
    Url,
    first_sentence,
)
from keyferry.spec.durations import LONGEST, format_duration
from keyferry.spec.grant import GRANT_RULES, PROTOCOL_PARAMETERS, Grant, ParameterName, TokenExchangeGrant
from keyferry.spec.identity import Consumer, ExpectedSubject, Renewal
from keyferry.spec.provider import (
    CLIENT_RULES,
    PROVIDER_RULES,
    AssertionAudience,
    Client,
    ClientAuthentication,
    ClusterTokenProviderSpec,
    Lifetime,
    OAuthProvider,
    TokenProviderSpec,
)
from keyferry.spec.selector import SELECTOR_RULES, SelectorExpression
from keyferry.spec.target import (
    DIRECTORIES,
    FILE_RULES,
    FIXED_NAMES,
    OWN_PREFIX,
    FileName,
    Target,
    TargetFile,
    TargetType,
)

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

LONGEST_IDENTITY_NAME: Final = 63
_LAST_PORT: Final = 65535


class Why(enum.StrEnum):
    """What the API server calls a broken rule."""

    INVALID = "FieldValueInvalid"
    REQUIRED = "FieldValueRequired"
    FORBIDDEN = "FieldValueForbidden"


@dataclass(frozen=True, slots=True)
class Rule:
    """One CEL rule; ``self`` is the value whose schema it stands in."""

    rule: str
    message: str
    """What is wrong, said of the field; it never repeats a value."""
    field: str = ""
    """The field below ``self`` that is meant (YAML names, joined by dots); empty where it is ``self``."""
    why: Why = Why.INVALID

    def as_json(self) -> dict[str, str]:
        """Return the rule as it stands in a schema."""
        path = {"fieldPath": f".{self.field}"} if self.field else {}
        return {"rule": self.rule, "message": self.message, "reason": str(self.why), **path}


# --- parts of expressions ---------------------------------------------------------------------------------------------


def quoted(text: str) -> str:
    """Return a text as a CEL literal; a raw one, so that patterns stay legible."""
    if "'" in text or "\n" in text:
        raise ValueError("a raw CEL text holds neither ' nor a line break")
    return f"r'{text}'" if "\\" in text else f"'{text}'"


def listed(texts: Iterable[str]) -> str:
    """Return texts as a CEL list."""
    return f"[{', '.join(quoted(str(text)) for text in texts)}]"


def one_of(text: str, choices: Sequence[str]) -> str:
    """Return the expression that holds where a text is one of the choices."""
    return f"{text} == {quoted(str(choices[0]))}" if len(choices) == 1 else f"{text} in {listed(choices)}"


def is_set(model: type[Model], name: str, this: str = "self") -> str:
    """Return the expression for :meth:`Model.is_set`: the field is there, and differs from its default."""
    field = f"{this}.{model.alias_of(name)}"
    default = model.model_fields[name].default
    if default is None:
        return f"has({field})"
    if isinstance(default, bool):
        return f"(has({field}) && {field} != {str(default).lower()})"
    if isinstance(default, str):
        return f"(has({field}) && {field} != {quoted(default)})"
    if isinstance(default, tuple | Mapping) and not default:
        return f"(has({field}) && size({field}) > 0)"
    raise TypeError(f"no expression for the default of {model.__name__}.{name}")


def or_default(model: type[Model], name: str, this: str = "self") -> str:
    """Return the expression for a field's text, or for its default where it is absent."""
    info = model.model_fields[name]
    field = f"{this}.{model.alias_of(name)}"
    if info.is_required():
        return field
    default = info.default if isinstance(info.default, str) else format_duration(info.default)
    return f"(has({field}) ? {field} : {quoted(default)})"


def _seconds(text: str) -> str:
    """Return the expression for the seconds of a duration; an absent unit counts as ``0``."""
    terms = (
        f"int(('0' + {text}.find('[0-9]+{unit}')).replace('{unit}', '')) * {size}"
        for unit, size in (("d", 86400), ("h", 3600), ("m", 60), ("s", 1))
    )
    return f"({' + '.join(terms)})"


def _in_order(shorter: str, longer: str) -> str:
    """Return the expression that holds unless the first duration is longer than the second."""
    return f"[{shorter}, {longer}].map(d, {_seconds('d')}).isSorted()"


# --- rules of single values -------------------------------------------------------------------------------------------

_LONGEST_DURATION: Final = Rule(f"{_seconds('self')} <= {LONGEST}", f"must be at most {LONGEST // 86400}d")
_NOT_OF_THE_PROTOCOL: Final = "set by the protocol itself and cannot be an extra parameter"
_HEX: Final = "[0-9A-Fa-f]{1,4}"
_IPV6: Final = "|".join(
    (
        f"({_HEX}:){{7}}{_HEX}",
        f"({_HEX}:){{1,7}}:",
        *(f"({_HEX}:){{1,{before}}}(:{_HEX}){{1,{7 - before}}}" for before in range(6, 0, -1)),
        f":((:{_HEX}){{1,7}}|:)",
    )
)
"""RFC 4291 2.2, forms 1 and 2. CEL's ``isIP`` of a part of a text is reckoned as if the part had no bound."""
_URL: Final = (
    Rule("isURL(self)", "must be an absolute URL that begins with https:// (or http://)"),
    Rule(
        f"!isURL(self) || url(self).getPort() == '' || int(url(self).getPort()) <= {_LAST_PORT}",
        f"must not hold a port above {_LAST_PORT}",
    ),
    Rule(
        rf"!self.matches(r'^https?://\[') || self.matches(r'^https?://\[({_IPV6})\]')",
        "must hold an IPv6 address between [ and ]",
    ),
)

VALUE_RULES: Final[tuple[tuple[Any, tuple[Rule, ...]], ...]] = (
    (Duration, (_LONGEST_DURATION,)),
    (PositiveDuration, (Rule("self.matches('[1-9]')", "must be longer than 0s"), _LONGEST_DURATION)),
    (
        TokenRequestDuration,
        (
            Rule(
                f"{_seconds('self')} >= {SHORTEST_TOKEN_REQUEST}",
                f"must be at least {format_duration(SHORTEST_TOKEN_REQUEST)}, the least that the API server grants",
            ),
            _LONGEST_DURATION,
        ),
    ),
    (Issuer, _URL),
    (Url, _URL),
    (
        ParameterName,
        (Rule(f"!(self.lowerAscii() in {listed(sorted(PROTOCOL_PARAMETERS))})", f"is {_NOT_OF_THE_PROTOCOL}"),),
    ),
    (
        FileName,
        (
            Rule(
                f"!self.lowerAscii().startsWith({quoted(OWN_PREFIX)}) && !(self in {listed(sorted(DIRECTORIES))})",
                "is a name that Keyferry keeps for itself (.keyferry…, .tiled, .aiod)",
            ),
        ),
    ),
)
"""Kinds of values (as the models annotate them), and their rules."""


def key_rules(key: Any, pattern: str, longest: int, words: str) -> tuple[Rule, ...]:
    """Return the rules of a mapping's keys; ``words`` say what the pattern asks for."""
    rules = [
        Rule(
            f"self.all(k, size(k) <= {longest} && k.matches({quoted(pattern)}))",
            f"has a key that is not valid: it {words}",
        )
    ]
    if key == ParameterName:
        listed_names = listed(sorted(PROTOCOL_PARAMETERS))
        rules.append(
            Rule(f"self.all(k, !(k.lowerAscii() in {listed_names}))", f"has a name that is {_NOT_OF_THE_PROTOCOL}")
        )
    return tuple(rules)


# --- rules between the fields of a model ------------------------------------------------------------------------------


def _members(model: type[Model], union: Union) -> tuple[Rule, ...]:
    """Return the rules of a union: what each choice needs, and what belongs to other choices."""
    selector, choice = model.alias_of(union.selector), or_default(model, union.selector)
    rules: list[Rule] = []
    for name in dict.fromkeys(name for kind in union.needed for name in union.needed[kind] + union.foreign[kind]):
        field, owners = model.alias_of(name), union.owners(name)
        needing = [str(kind) for kind, names in union.needed.items() if name in names]
        if needing:
            purpose = first_sentence(model.model_fields[name].description or "")
            missing = f"is missing; {selector}: {' or '.join(needing)} needs it: {purpose}"
            rule = f"!({one_of(choice, needing)}) || {is_set(model, name)}"
            rules.append(Rule(rule, missing, field, Why.REQUIRED))
        rule = f"{one_of(choice, owners)} || !{is_set(model, name)}"
        rules.append(Rule(rule, f"belongs to {selector}: {' or '.join(owners)} only", field, Why.FORBIDDEN))
    return tuple(rules)


def _exactly_one(model: type[Model], *names: str) -> tuple[Rule, ...]:
    fields = [model.alias_of(name) for name in names]
    chosen = ", ".join(f"has(self.{field})" for field in fields)
    return (Rule(f"[{chosen}].exists_one(x, x)", f"needs exactly one of {', '.join(fields)}"),)


def _client() -> tuple[Rule, ...]:
    assertion = quoted(ClientAuthentication.CLIENT_ASSERTION)
    return (
        Rule("!has(self.id) || !has(self.idFrom)", "must not stand beside id", "idFrom", Why.FORBIDDEN),
        # An assertion of a trusted issuer names its client itself, by its subject (RFC 7521 4.2).
        Rule(
            f"has(self.id) || has(self.idFrom) || {or_default(Client, 'authentication')} == {assertion}",
            "is missing; a client needs id or idFrom",
            "id",
            Why.REQUIRED,
        ),
        *_members(Client, CLIENT_RULES),
    )


def _oauth() -> tuple[Rule, ...]:
    signs = f"{or_default(Client, 'authentication', 'self.client')} == {quoted(ClientAuthentication.PRIVATE_KEY_JWT)}"
    to_issuer = f"{or_default(Client, 'assertion_audience', 'self.client')} == {quoted(AssertionAudience.ISSUER)}"
    return (
        Rule(
            "has(self.issuer) || (has(self.endpoints) && has(self.endpoints.token))",
            "is missing; either issuer (discovered) or endpoints.token is needed",
            "issuer",
            Why.REQUIRED,
        ),
        Rule(
            f"has(self.issuer) || !has(self.client) || !({signs} && {to_issuer})",
            "addresses the assertion to the issuer, which is not set; set issuer, or TokenEndpoint here",
            "client.assertionAudience",
        ),
    )


def _provider() -> tuple[Rule, ...]:
    tls = quoted(ClientAuthentication.TLS_CLIENT_AUTH)
    presents = f"{or_default(Client, 'authentication', 'self.oauth.client')} == {tls}"
    return (
        *_members(TokenProviderSpec, PROVIDER_RULES),
        Rule(
            f"!has(self.oauth) || !has(self.oauth.client) || !({presents}) || "
            "(has(self.tls) && has(self.tls.clientCertificateFrom))",
            "is missing; authentication: TlsClientAuth presents a certificate",
            "tls.clientCertificateFrom",
            Why.REQUIRED,
        ),
    )


def _unique_names() -> tuple[Rule, ...]:
    """Return the rules by which no two files claim the same name, whether it is written out or their format's."""
    message = "has two files of the same name; each file needs a name of its own"
    fixed = (
        f"!self.files.exists(f, f.format == {quoted(kind)}) || "
        f"!self.files.exists(f, has(f.name) && f.name in {listed(names)})"
        for kind, names in FIXED_NAMES.items()
    )
    expressions = (
        "self.files.all(f, !has(f.name) || self.files.exists_one(g, has(g.name) && g.name == f.name))",
        f"{listed(FIXED_NAMES)}.all(k, self.files.filter(f, f.format == k).size() <= 1)",
        *fixed,
    )
    return tuple(Rule(f"!has(self.files) || ({expression})", message, "files") for expression in expressions)


def _target() -> tuple[Rule, ...]:
    without = f"{or_default(Target, 'type')} != {quoted(TargetType.NONE)}"
    return (
        *_unique_names(),
        *(
            Rule(
                f"{without} || !{is_set(Target, name)}",
                "does not belong to type: None, which publishes no Secret",
                Target.alias_of(name),
                Why.FORBIDDEN,
            )
            for name in ("secret_name", "labels", "annotations", "touch_pods")
        ),
        *(
            Rule(
                f"!has(self.{name}) || self.{name}.all(k, !k.matches('^[^/]*keyferry[.]dev/'))",
                "has a key that begins with keyferry.dev/, which Keyferry keeps for itself",
                name,
                Why.FORBIDDEN,
            )
            for name in ("labels", "annotations")
        ),
    )


MODEL_RULES: Final[Mapping[type[Model], tuple[Rule, ...]]] = {
    CaSource: _exactly_one(CaSource, "secret_key_ref", "config_map_key_ref"),
    Client: _client(),
    ClusterTokenProviderSpec: _provider(),
    Consumer: _exactly_one(Consumer, "service_account_name", "identity_name"),
    ExpectedSubject: _exactly_one(ExpectedSubject, "subject", "email"),
    Grant: _members(Grant, GRANT_RULES),
    Lifetime: (
        Rule(
            _in_order(or_default(Lifetime, "assumed"), or_default(Lifetime, "maximum")),
            "must not be longer than maximum",
            "assumed",
        ),
    ),
    OAuthProvider: _oauth(),
    Renewal: (
        Rule(
            f"!has(self.before) || {_in_order(or_default(Renewal, 'minimum_remaining'), 'self.before')}",
            "is shorter than minimumRemaining: consumers would be held back before every renewal",
            "before",
        ),
    ),
    SelectorExpression: _members(SelectorExpression, SELECTOR_RULES),
    Subject: _exactly_one(Subject, "service_account_token", "secret_key_ref", "identity_ref"),
    Target: _target(),
    TargetFile: _members(TargetFile, FILE_RULES),
    TokenExchangeGrant: (
        Rule(
            f"has(self.actor) || !{is_set(TokenExchangeGrant, 'actor_token_type')}",
            "has no actor that it could be the type of (RFC 8693 2.1)",
            "actorTokenType",
            Why.FORBIDDEN,
        ),
    ),
    TokenProviderSpec: _provider(),
}
"""Models, and the rules between their fields: the same as their ``mistakes()``."""

IDENTITY_NAME_RULE: Final = Rule(
    f"size(self.metadata.name) <= {LONGEST_IDENTITY_NAME}",
    f"metadata.name must have at most {LONGEST_IDENTITY_NAME} characters",
)
"""Stands at the root of a ServiceIdentity, whose name becomes a label value; the API server checks the characters."""
