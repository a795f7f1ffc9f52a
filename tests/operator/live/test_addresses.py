"""Where credentials are not sent, by address, name or redirect: each refusal names the setting that would allow it."""

from __future__ import annotations

from ipaddress import ip_network
from typing import TYPE_CHECKING, Any

import pytest

from keyferry.demo.clients import AuthMethod, Client, Grant
from keyferry.secret import SecretValue
from keyferry_operator.installation import AllowedHost, Installation, ProviderSettings
from tests.support.peers import Names, Peer, serving

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field

pytestmark = [
    pytest.mark.cluster,
    # kopf ends its loop, in its own thread, before the last of its TLS connections has said goodbye.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]

SECRET = "s3cret of the bot"
NEVER = "which is never allowed"
ENTRY = 'an entry {{host: "{host}", port: {port}}} in the installation\'s providers.allowedHosts would allow it'
CLUSTER = "private addresses over TLS are open to ClusterTokenProviders without one"

NAMES = Names(
    metadata_example_org=["169.254.169.254"],
    mapped_example_org=["::ffff:169.254.169.254"],
    translated_example_org=["64:ff9b::a9fe:a9fe"],
    inside_example_org=["10.1.2.3", "fd00::7"],
    wrapped_example_org=["64:ff9b::a01:203"],
    local_example_org=["127.0.0.1", "::1"],
    denied_example_org=["198.18.7.7"],
)
CLOSED: dict[str, tuple[str, tuple[str, ...]]] = {
    "link-local": ("https://169.254.169.254/", ("closed address (link-local)", NEVER)),
    "private": ("https://10.1.2.3:8443/", ("(private)", ENTRY.format(host="10.1.2.3", port=8443), CLUSTER)),
    "loopback": ("https://[::1]/", ("(loopback)", ENTRY.format(host="[::1]", port=443))),
    "link-local-name": ("https://metadata.example.org/", ("resolves to a closed address, 169.254.169.254", NEVER)),
    "mapped-name": ("https://mapped.example.org/", ("(link-local)", NEVER)),
    "translated-name": ("https://translated.example.org/", ("(link-local)", NEVER)),
    "private-name": (
        "https://inside.example.org/realms/a",
        ("it resolves to a closed address, 10.1.2.3 (private)", ENTRY.format(host="inside.example.org", port=443)),
    ),
    "wrapped-name": ("https://wrapped.example.org/", ("(private)", CLUSTER)),
    "loopback-name": ("https://local.example.org/", ("(loopback)",)),
    "plain-http": (
        "http://auth.example.org:8080/",
        ("plain HTTP shows credentials", '{host: "auth.example.org", port: 8080, plainHTTP: true}'),
    ),
    "denied": ("https://denied.example.org/", ("(denied)", "providers.deniedCIDRs")),
    "denied-literal": ("https://198.18.0.1/", ("(denied)", "providers.deniedCIDRs")),
}
SETTINGS = Installation(
    providers=ProviderSettings(
        allowed_hosts=(AllowedHost(host="denied.example.org"),), denied_cidrs=(ip_network("198.18.0.0/15"),)
    )
)


def _bot(field: Field, hosts: str = "*") -> None:
    methods, grants = (AuthMethod.BASIC,), (Grant.CLIENT_CREDENTIALS,)
    field.issuer.clients.add(Client("bot", secrets=(SECRET,), methods=methods, grants=grants, scopes=("read",)))
    field.apply(field.secret("bot", hosts, secret=SECRET))


def _provider(field: Field, name: str, *, issuer: str | None = None, token: str | None = None) -> dict[str, Any]:
    document = field.provider(name)
    where = {"issuer": issuer} if token is None else {"endpoints": {"token": token}}
    document["spec"]["oauth"] = {"client": document["spec"]["oauth"]["client"], **where}
    document["spec"]["limits"] = {"timeout": "5s"}
    return document


async def test_a_closed_address_is_refused_however_it_is_written(field: Field) -> None:
    _bot(field)
    for name, (url, _) in CLOSED.items():
        field.apply(_provider(field, name, issuer=url), field.identity(name, providerRef={"name": name}))
        # The same where nothing is discovered.
        token = _provider(field, f"{name}-token", token=f"{url}token")
        field.apply(token, field.identity(f"{name}-token", providerRef={"name": f"{name}-token"}))
    hosts = ",".join(url.split("/")[2] for url, _ in CLOSED.values())
    field.apply(field.secret("bot", hosts, secret=SECRET))
    async with field.operator(names=NAMES, installation=SETTINGS):
        for name, (_, words) in CLOSED.items():
            for each in (name, f"{name}-token"):
                for told in (
                    await field.told(each, reason="HostNotAllowed", status="False"),
                    await field.provider_told(each, reason="HostNotAllowed", status="False"),
                ):
                    for word in words:
                        assert word in told["message"], each
                assert field.condition(each, "Stalled")["status"] == "True"


async def test_a_host_is_opened_to_the_namespaces_that_an_entry_names(field: Field) -> None:
    port = field.issuer.listener.port
    host = f"auth.example.org:{port}"
    _bot(field, host)
    field.apply(_provider(field, "issuer", token=f"http://{host}/token"), field.identity("nightly"))
    names = Names(auth_example_org=["127.0.0.1"])

    def settings(**entry: Any) -> Installation:
        return Installation.model_validate({"providers": {"allowedHosts": [{"host": "auth.example.org", **entry}]}})

    for refused in ({}, {"plainHTTP": True, "namespaces": ["other"]}, {"plainHTTP": True, "port": port + 1}):
        async with field.operator(names=names, installation=settings(**refused), allowed_hosts=()):
            await field.told("nightly", reason="HostNotAllowed")
            assert "plainHTTP: true" in field.condition("nightly")["message"]
        assert not field.issuer.requests
    entry = {"port": port, "plainHTTP": True, "namespaces": [field.namespace]}
    async with field.operator(names=names, installation=settings(**entry), allowed_hosts=()):
        await field.told("nightly", status="True")
        await field.provider_told("issuer", reason="Configured")


async def test_a_redirect_is_not_followed(field: Field) -> None:
    async def elsewhere(peer: Peer) -> None:
        while True:
            await peer.request()
            location = b"http://169.254.169.254/latest/meta-data/"
            await peer.send(b"HTTP/1.1 302 Found\r\nLocation: " + location + b"\r\nContent-Length: 0\r\n\r\n")

    async with serving(elsewhere) as server:
        base = f"http://127.0.0.1:{server.port}"
        _bot(field, f"127.0.0.1:{server.port}")
        field.apply(_provider(field, "discovered", issuer=base), _provider(field, "token", token=f"{base}/token"))
        field.apply(*(field.identity(name, providerRef={"name": name}) for name in ("discovered", "token")))
        async with field.operator():
            for name in ("discovered", "token"):
                await field.told(name, status="False", message="redirect")
            await field.provider_told("discovered", status="False", message="redirect")
    assert all(arrival.split(b" ")[1] in (b"/token", *KNOWN) for arrival in server.arrivals)


KNOWN = (b"/.well-known/openid-configuration", b"/.well-known/oauth-authorization-server")


async def test_a_proxy_is_used_where_the_installation_names_one(field: Field) -> None:
    _bot(field, f"auth.example.org,127.0.0.1:{field.issuer.listener.port}")
    reached: list[bytes] = []

    async def refuse(peer: Peer) -> None:
        reached.append((await peer.request()).split(b"\r\n")[0])
        await peer.send(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")

    async with serving(refuse) as proxy:
        field.apply(_provider(field, "outside", token="https://auth.example.org/token"))
        field.apply(field.provider(), field.identity("direct"), field.identity("far", providerRef={"name": "outside"}))
        settings = Installation.model_validate({"proxy": {"noProxy": ["127.0.0.1"]}})
        url = SecretValue(f"http://user:passw0rd@127.0.0.1:{proxy.port}")
        async with field.operator(installation=settings, proxy=url):
            await field.told("direct", status="True")
            await field.told("far", message="the proxy refused to connect")
            assert "passw0rd" not in str(field.status("far"))
    assert set(reached) == {b"CONNECT auth.example.org:443 HTTP/1.1"}
