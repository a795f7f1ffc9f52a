from __future__ import annotations

import socket
from ipaddress import ip_address, ip_network

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given
from hypothesis import strategies as st

from keyferry.errors import NotSent, Reason, RetryClass
from keyferry.io.addresses import (
    NEVER,
    AddressNotAllowedError,
    AddressPolicy,
    GuardedResolver,
    HostRule,
    Kind,
    kind_of,
)

STRICT = AddressPolicy()


def refusal(policy: AddressPolicy, url: str) -> NotSent:
    with pytest.raises(NotSent) as caught:
        policy.check_url(url)
    return caught.value


def allowing(*rules: str) -> AddressPolicy:
    return AddressPolicy(tuple(HostRule.parse(rule) for rule in rules))


class Names(AbstractResolver):
    """Answers every name with the same addresses."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses
        self.closed = False

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            ResolveResult(hostname=host, host=address, port=port, family=family, proto=0, flags=0)
            for address in self.addresses
        ]

    async def close(self) -> None:
        self.closed = True


CLOSED = [
    ("127.0.0.1", Kind.LOOPBACK),
    ("127.255.0.9", Kind.LOOPBACK),
    ("[::1]", Kind.LOOPBACK),
    ("0.0.0.0", Kind.UNSPECIFIED),  # noqa: S104 - an address that must be refused
    ("[::]", Kind.UNSPECIFIED),
    ("10.1.2.3", Kind.PRIVATE),
    ("172.31.255.255", Kind.PRIVATE),
    ("192.168.0.1", Kind.PRIVATE),
    ("[fd12:3456::1]", Kind.PRIVATE),
    ("[fec0::1]", Kind.PRIVATE),
    ("100.64.0.1", Kind.SHARED),
    ("192.0.2.1", Kind.DOCUMENTATION),
    ("198.51.100.7", Kind.DOCUMENTATION),
    ("203.0.113.255", Kind.DOCUMENTATION),
    ("[2001:db8::1]", Kind.DOCUMENTATION),
    ("[3fff::1]", Kind.DOCUMENTATION),
    ("198.19.255.1", Kind.BENCHMARKING),
    ("[2001:2::1]", Kind.BENCHMARKING),
    ("224.0.0.1", Kind.MULTICAST),
    ("[ff02::1]", Kind.MULTICAST),
    ("240.0.0.1", Kind.RESERVED),
    ("255.255.255.255", Kind.RESERVED),
    ("192.0.0.8", Kind.RESERVED),
    ("192.88.99.1", Kind.RESERVED),
    ("[100::1]", Kind.RESERVED),
    ("[4000::1]", Kind.RESERVED),
    ("[5f00::1]", Kind.RESERVED),
]

FINAL = [
    ("169.254.169.254", Kind.LINK_LOCAL),
    ("[fe80::1]", Kind.LINK_LOCAL),
    ("[febf::1]", Kind.LINK_LOCAL),
    ("168.63.129.16", Kind.METADATA),
    ("100.100.100.200", Kind.METADATA),
    ("192.0.0.192", Kind.METADATA),
    ("[fd00:ec2::254]", Kind.METADATA),
    ("[fd20:ce::254]", Kind.METADATA),
    ("[::ffff:169.254.169.254]", Kind.LINK_LOCAL),
    ("[::169.254.169.254]", Kind.LINK_LOCAL),
    ("[::ffff:0:169.254.169.254]", Kind.LINK_LOCAL),
    ("[2002:a9fe:a9fe::1]", Kind.LINK_LOCAL),
    ("[64:ff9b::169.254.169.254]", Kind.LINK_LOCAL),
    ("[64:ff9b:1::a9fe:a9fe]", Kind.LINK_LOCAL),  # the embedded address after 96,
    ("[64:ff9b:1:a9fe:a9:fe00::]", Kind.LINK_LOCAL),  # 48,
    ("[64:ff9b:1:a9:fe:a9fe::]", Kind.LINK_LOCAL),  # 56
    ("[64:ff9b:1:0:a9:fea9:fe00:0]", Kind.LINK_LOCAL),  # and 64 bits (RFC 6052 2.2)
    ("[2001:0:4136:e378:8000:63bf:5601:5601]", Kind.LINK_LOCAL),  # a Teredo client
    ("[2001:0:a9fe:a9fe::f7f7:f7f7]", Kind.LINK_LOCAL),  # a Teredo server
]


@pytest.mark.parametrize(("host", "kind"), CLOSED)
def test_an_address_that_is_not_public_is_closed_until_its_host_is_allowed(host: str, kind: Kind) -> None:
    error = refusal(STRICT, f"https://{host}/token")
    assert error.reason is Reason.HOST_NOT_ALLOWED
    assert error.retry is RetryClass.NEEDS_CONFIGURATION
    assert error.code == "host_not_allowed"
    assert error.message == f"{host}:443: a closed address ({kind}); --allow-host {host}:443 would allow it"

    assert allowing(f"{host}:443").check_url(f"https://{host}/token").host == host
    assert allowing(host).check_url(f"https://{host}:8443/token").port == 8443
    assert refusal(allowing(f"{host}:443"), f"https://{host}:8443/").code == "host_not_allowed"


@pytest.mark.parametrize(("host", "kind"), FINAL)
def test_link_local_and_metadata_addresses_are_never_open(host: str, kind: Kind) -> None:
    policy = AddressPolicy((HostRule.parse(host),), private=True)
    error = refusal(policy, f"https://{host}/")
    assert f"({kind}); which is never allowed" in error.message


@pytest.mark.parametrize(
    "host",
    [
        "[::ffff:127.0.0.1]",
        "[::127.0.0.1]",
        "[2002:7f00:1::]",
        "[64:ff9b::127.0.0.1]",
        "[64:ff9b:1::127.0.0.1]",
        "[2001:0:4136:e378:8000:63bf:80ff:fffe]",
        "[::ffff:10.0.0.1]",
    ],
)
def test_an_embedded_ipv4_address_is_what_is_judged(host: str) -> None:
    assert refusal(STRICT, f"https://{host}/").reason is Reason.HOST_NOT_ALLOWED


@pytest.mark.parametrize(
    "host", ["1.1.1.1", "[2606:4700::1111]", "[::ffff:1.1.1.1]", "[64:ff9b::1.1.1.1]", "[2002:101:101::]"]
)
def test_public_addresses_are_open_over_tls_only(host: str) -> None:
    STRICT.check_url(f"https://{host}/")
    error = refusal(STRICT, f"http://{host}/")
    assert "plain HTTP shows credentials to the network; use https" in error.message
    assert error.reason is Reason.HOST_NOT_ALLOWED


def test_private_opens_private_networks_over_tls_and_nothing_else() -> None:
    policy = AddressPolicy(private=True)
    for host in ("10.0.0.1", "100.64.0.1", "[fd00::1]", "[64:ff9b:1::10.0.0.1]", "[::ffff:10.0.0.1]"):
        policy.check_url(f"https://{host}/")
    for url in ("http://10.0.0.1/", "https://127.0.0.1/", "https://[::1]/", "https://240.0.0.1/"):
        assert refusal(policy, url).reason is Reason.HOST_NOT_ALLOWED


def test_denied_networks_are_closed_whatever_is_allowed() -> None:
    policy = AddressPolicy(
        (HostRule("10.96.0.1"), HostRule("1.1.1.1")),
        private=True,
        denied=(ip_network("10.96.0.0/12"), ip_network("1.1.1.0/24"), ip_network("fd00::/8")),
    )
    for host in ("10.96.0.1", "1.1.1.1", "[::ffff:10.96.0.1]", "[fd00::1]"):
        assert "(denied); which is never allowed" in refusal(policy, f"https://{host}/").message
    policy.check_url("https://10.1.0.1/")


def test_a_rule_may_open_private_addresses_without_plain_http() -> None:
    policy = AddressPolicy((HostRule.parse("10.0.0.1", plain_http=False),))
    policy.check_url("https://10.0.0.1/")
    assert "plain HTTP" in refusal(policy, "http://10.0.0.1/").message


def test_the_installation_words_the_advice() -> None:
    policy = AddressPolicy(advice="ask for {host} in providers.allowedHosts")
    assert refusal(policy, "https://10.0.0.1:9/").message.endswith("; ask for 10.0.0.1:9 in providers.allowedHosts")
    policy = AddressPolicy(
        advice='{host: "{name}"}', http_advice="{name} and {port}", denied=(ip_network("10.0.0.2"),), denial="closed"
    )
    assert refusal(policy, "https://10.0.0.1:9/").message.endswith('; {host: "10.0.0.1"}')
    assert refusal(policy, "https://10.0.0.2:9/").message.endswith("(denied); closed")
    assert refusal(policy, "http://10.0.0.1:9/").message.endswith("use https (10.0.0.1 and 9)")


@pytest.mark.parametrize(
    "url",
    [
        "https://2130706433/",
        "https://127.1/",
        "https://0x7f.1/",
        "https://0x7f000001/",
        "https://0177.0.0.1/",
        "https://127.0.0.01/",
        "https://1.2.3.4.5/",
        "https://256.1.1.1/",
        "https://1.1.1.1./",
        "https://example.0x10/",
        "https://[fe80::1%25eth0]/",
        "https://[fe80::1%eth0]/",
        "https://[1.2.3.4]/",
        "https://auth..example.org/",
        "https://auth.example.org../",
        "https://-auth.example.org/",
        "https://%31%32%37.0.0.1/",
        "https://a%00b/",
        "https://user@auth.example.org/",
        "https://user:secret@auth.example.org/",
        "https://:secret@auth.example.org/",
        "https://auth.example.org\\@127.0.0.1/",
        "https://auth.example.org\t/",
        "https://auth.example.org/a b",
        "https://auth.example.org/\r\nHost: x",
        "https://auth.example.org:0/",
        "https://auth.example.org:65536/",
        "https://auth.example.org:x/",
        "https:///token",
        "//auth.example.org/",
        "/token",
        "",
        "ftp://auth.example.org/",
        "file:///etc/passwd",
        "ws://auth.example.org/",
        "https://" + "a" * 64 + ".org/",
        "https://[::1/",
    ],
)
def test_a_url_that_could_be_read_in_two_ways_is_refused_even_to_a_lenient_policy(url: str) -> None:
    policy = AddressPolicy((HostRule("127.0.0.1"), HostRule("auth.example.org")), private=True)
    error = refusal(policy, url)
    assert error.reason is Reason.INVALID_SPEC
    assert error.code == "invalid_url"
    assert "secret" not in error.message.lower().replace("belong in a secret", "")


@pytest.mark.parametrize(
    ("url", "host", "sent"),
    [
        ("https://AUTH.Example.ORG/T?x=%2B", "auth.example.org", "https://auth.example.org/T?x=%2B"),
        ("https://auth.example.org.:443/", "auth.example.org", "https://auth.example.org./"),
        ("https://bücher.example/", "xn--bcher-kva.example", "https://xn--bcher-kva.example/"),  # spell-checker: ignore
        ("https://[2606:4700:0:0::1111]/", "[2606:4700::1111]", "https://[2606:4700::1111]/"),
        ("https://auth.example.org/?a=[1]", "auth.example.org", "https://auth.example.org/?a=%5B1%5D"),
        ("https://a_b.example.org/", "a_b.example.org", "https://a_b.example.org/"),
    ],
)
def test_a_host_has_one_spelling(url: str, host: str, sent: str) -> None:
    target = STRICT.check_url(url)
    assert (target.host, target.url) == (host, sent)


def test_letters_that_normalise_to_an_address_are_that_address() -> None:
    loopback = "\uff11\uff12\uff17.\uff10.\uff10.\uff11"  # full-width digits
    assert "127.0.0.1:443: a closed address (loopback)" in refusal(STRICT, f"https://{loopback}/").message


def test_a_query_is_not_shown() -> None:
    assert "sig" not in repr(STRICT.check_url("https://auth.example.org/?sig=1"))
    assert "sig" not in refusal(STRICT, "http://auth.example.org/?sig=1").message


@pytest.mark.parametrize(
    ("text", "host", "port"),
    [
        ("localhost", "localhost", None),
        ("LOCALHOST.:8080", "localhost", 8080),
        ("127.0.0.1:1", "127.0.0.1", 1),
        ("[0:0::1]:443", "[::1]", 443),
        ("[::1]", "[::1]", None),
        ("bücher.example", "xn--bcher-kva.example", None),  # spell-checker: ignore
    ],
)
def test_a_rule_is_read(text: str, host: str, port: int | None) -> None:
    rule = HostRule.parse(text)
    assert rule == HostRule(host, port)
    assert HostRule.parse(str(rule)) == rule


@pytest.mark.parametrize(
    "text",
    ["", ":80", "::1", "host:", "host:0", "host:70000", "host:port", "https://host", "host/path", "127.1", "*.org",
     "[fe80::1%1]", "[nonsense]", "a b", "user@host"],
)  # fmt: skip
def test_a_rule_that_is_not_understood_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not HOST"):
        HostRule.parse(text)


@given(st.ip_addresses())
def test_every_address_has_one_kind_and_what_is_never_open_stays_closed(address: object) -> None:
    found = ip_address(str(address))
    host = f"[{found}]" if found.version == 6 else str(found)
    policy = AddressPolicy((HostRule.parse(host),), private=True)
    if kind_of(found) in NEVER:
        assert refusal(policy, f"https://{host}/").reason is Reason.HOST_NOT_ALLOWED
    elif kind_of(found) is Kind.PUBLIC and found.version == 4:
        STRICT.check_url(f"https://{host}/")


async def test_of_mixed_answers_only_the_permitted_addresses_are_passed_on() -> None:
    names = Names("10.0.0.1", "1.1.1.1", "::1", "2606:4700::1111", "169.254.169.254", "fe80::1%1")
    kept = [entry["host"] for entry in await GuardedResolver(STRICT, names).resolve("auth.example.org", 443)]
    assert kept == ["1.1.1.1", "2606:4700::1111"]

    lenient = GuardedResolver(allowing("auth.example.org:443"), names)
    kept = [entry["host"] for entry in await lenient.resolve("Auth.Example.Org.", 443)]
    assert kept == ["10.0.0.1", "1.1.1.1", "::1", "2606:4700::1111"]
    kept = [entry["host"] for entry in await lenient.resolve("auth.example.org", 444)]
    assert kept == ["1.1.1.1", "2606:4700::1111"]


async def test_a_name_with_nothing_permitted_is_refused_with_its_address() -> None:
    with pytest.raises(AddressNotAllowedError) as caught:
        await GuardedResolver(STRICT, Names("10.0.0.1", "::1")).resolve("auth.example.org", 443)
    assert caught.value.refusal.reason is Reason.HOST_NOT_ALLOWED
    assert caught.value.refusal.message == (
        "auth.example.org:443: it resolves to a closed address, 10.0.0.1 (private); "
        "--allow-host auth.example.org:443 would allow it"
    )


async def test_a_name_without_any_address_is_a_failed_lookup() -> None:
    with pytest.raises(socket.gaierror):
        await GuardedResolver(STRICT, Names()).resolve("auth.example.org", 443)


async def test_the_installations_proxy_may_be_anywhere() -> None:
    names = Names("10.0.0.1")
    resolver = GuardedResolver(STRICT, names, proxy=HostRule("proxy.example.org", 3128))
    assert [entry["host"] for entry in await resolver.resolve("proxy.example.org", 3128)] == ["10.0.0.1"]
    with pytest.raises(AddressNotAllowedError):
        await resolver.resolve("proxy.example.org", 443)
    await resolver.close()
    assert names.closed
