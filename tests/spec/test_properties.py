"""Whatever comes in, problems come out, never an exception; and what is valid survives being written and read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from keyferry.spec.check import check_loaded
from keyferry.spec.durations import format_duration
from keyferry.spec.explain import aliases, choices_of, model_at
from keyferry.spec.hashes import files_hash, token_hash
from keyferry.spec.identity import ServiceIdentitySpec
from keyferry.spec.provider import ClusterTokenProviderSpec, TokenProviderSpec
from keyferry.spec.resources import Loaded, load_documents, load_object
from tests.spec.samples import REF, load, resource

if TYPE_CHECKING:
    from keyferry.spec.common import Model

KINDS: dict[str, type[Model]] = {
    "ServiceIdentity": ServiceIdentitySpec,
    "TokenProvider": TokenProviderSpec,
    "ClusterTokenProvider": ClusterTokenProviderSpec,
}
JUNK: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def nearly(draw: st.DrawFn, model: type[Model], depth: int = 0) -> Any:
    """A mapping with the model's own field names, where values are now and then of the wrong kind."""
    if depth > 5 or draw(st.integers(0, 9)) == 0:
        return draw(JUNK)
    fields = aliases(model)
    names = draw(st.lists(st.sampled_from(sorted(fields)), unique=True, max_size=6))
    result: dict[Any, Any] = {}
    for name in names:
        inner = model_at(model, (name,))
        choices = choices_of(fields[name])
        if inner is not None:
            value = draw(nearly(inner, depth + 1))
        elif choices:
            value = draw(st.sampled_from(choices) | JUNK)
        else:
            value = draw(JUNK | st.sampled_from(["a", "https://a/", "5m", "0s", ["a"], {"a": "${scope}"}]))
        result[name] = [value] if draw(st.integers(0, 3)) == 0 else value
    return result


def assert_told(loaded: Loaded) -> None:
    """Nothing is lost in silence: one resource, or problems that can be shown."""
    count = len(loaded.identities + loaded.providers)
    assert (count == 1) != bool(loaded.problems)
    for problem in loaded.problems:
        assert "\n" not in str(problem)
        assert problem.message


@given(st.sampled_from(sorted(KINDS)).flatmap(lambda kind: st.tuples(st.just(kind), nearly(KINDS[kind]))))
@settings(max_examples=150)
def test_any_spec_is_valid_or_told(case: tuple[str, Any]) -> None:
    kind, spec = case
    assert_told(load_object(resource(kind, spec)))


@given(JUNK)
def test_any_value_is_no_resource(value: Any) -> None:
    assert load_object(value).problems
    load_object({"apiVersion": "keyferry.dev/v1alpha1", "kind": "ServiceIdentity", "metadata": value, "spec": value})
    load_object({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "x"}, "data": value, "stringData": value})


@given(st.binary(max_size=200), st.integers(0, 400))
def test_any_bytes_are_told(data: bytes, cut: int) -> None:
    whole = yaml.safe_dump(resource("ServiceIdentity", {"providerRef": {"name": "p"}})).encode()
    load_documents(data, "f")
    loaded = load_documents(whole[:cut] + data, "f")
    assert all(str(problem) for problem in loaded.problems)


names = st.from_regex(r"[a-z]([a-z0-9-]{0,8}[a-z0-9])?", fullmatch=True)
durations = st.integers(1, 10**6).map(format_duration)
scopes = st.lists(st.from_regex(r"[a-z:.]{1,8}", fullmatch=True), max_size=3)
subjects = st.one_of(
    names.map(lambda name: {"identityRef": {"name": name}}),
    names.map(lambda name: {"serviceAccountToken": {"name": name, "audience": name}}),
    st.just(REF),
)
grants = st.one_of(
    st.sampled_from(["ClientCredentials", "DeviceCode", "AuthorizationCode", "LabArchivesLogin"]).map(
        lambda kind: {"type": kind}
    ),
    st.just({"type": "Password", "password": {"usernameFrom": REF, "passwordFrom": REF}}),
    st.just({"type": "RefreshToken", "refreshToken": {"from": REF}}),
    subjects.map(lambda subject: {"type": "JwtBearer", "jwtBearer": {"assertion": subject}}),
    st.tuples(subjects, subjects).map(
        lambda pair: {"type": "TokenExchange", "tokenExchange": {"subject": pair[0], "actor": pair[1]}}
    ),
)
texts = st.text(st.characters(min_codepoint=32, exclude_categories=["Cs", "Cc"]), min_size=1, max_size=20)
files = st.lists(
    st.one_of(
        names.map(lambda name: {"format": "Token", "name": name}),
        st.tuples(names, texts).map(
            lambda pair: {
                "format": "Template",
                "name": pair[0],
                "template": pair[1].replace("$", "") + "${access_token}",
            }
        ),
        names.map(lambda name: {"format": "Env", "name": name, "variables": {"A": "${scope}", "B": "$${x}"}}),
    ),
    min_size=1,
    max_size=4,
    unique_by=lambda file: str(file["name"]),
)
identities = st.fixed_dictionaries(
    {"providerRef": st.fixed_dictionaries({"name": names}), "grant": grants},
    optional={
        "scopes": scopes,
        "audiences": st.lists(texts, max_size=2),
        "parameters": st.dictionaries(names.map(lambda name: f"x-{name}"), texts, max_size=3),
        "renewal": durations.map(lambda before: {"before": before}),
        "expectedSubject": texts.map(lambda text: {"email": text}),
        "apiKey": st.fixed_dictionaries({}, optional={"expiresIn": durations, "note": texts}),
        "suspend": st.booleans(),
        "target": files.map(lambda items: {"files": items}),
        "consumers": names.map(lambda name: [{"serviceAccountName": name}]),
        "client": st.just({"id": "a", "authentication": "PrivateKeyJwt", "privateKeyFrom": REF, "algorithm": "EdDSA"}),
    },
)


@given(identities)
@settings(max_examples=80)
def test_valid_identities_survive_being_written_and_read(spec: Any) -> None:
    loaded = load(resource("ServiceIdentity", spec))
    assert loaded.problems == ()
    (found,) = loaded.identities
    for dumped in (
        found.spec.model_dump(by_alias=True, mode="json"),
        found.spec.model_dump(by_alias=True, mode="json", exclude_defaults=True),
        found.spec.model_dump(by_alias=True),
    ):
        (again,) = load_object(resource("ServiceIdentity", dumped)).identities
        assert again.spec == found.spec
        assert files_hash(again.spec.target) == files_hash(found.spec.target)


providers = st.fixed_dictionaries(
    {
        "type": st.just("OAuth"),
        "oauth": st.fixed_dictionaries(
            {"issuer": st.just("https://a.example/b")},
            optional={
                "client": names.map(lambda name: {"id": name, "secretsFrom": [REF]}),
                "refreshTokens": st.fixed_dictionaries({}, optional={"idle": durations, "reuseWindow": durations}),
                "lifetime": durations.map(lambda assumed: {"assumed": assumed, "maximum": "36500d"}),
            },
        ),
    },
    optional={
        "limits": st.fixed_dictionaries(
            {}, optional={"burst": st.integers(1, 100), "requestsPerSecond": st.floats(0.5, 100)}
        )
    },
)


@given(providers, identities)
@settings(max_examples=40)
def test_valid_providers_survive_too_and_can_be_checked_with_any_identity(provider: Any, identity: Any) -> None:
    loaded = load(
        resource("TokenProvider", provider, name="p"),
        resource("ServiceIdentity", identity | {"providerRef": {"name": "p"}}),
    )
    assert loaded.problems == ()
    (source,), (found,) = loaded.providers, loaded.identities
    (again,) = load_object(resource("TokenProvider", source.spec.model_dump(by_alias=True, mode="json"))).providers
    assert again.spec == source.spec
    assert token_hash(found.spec, again.spec) == token_hash(found.spec, source.spec)
    assert all(problem.resource and problem.path for problem in check_loaded(loaded))
