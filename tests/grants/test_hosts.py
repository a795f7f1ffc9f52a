"""The host for which a credential is checked is the host that a request would go to, however the URL is spelled."""

from __future__ import annotations

from ipaddress import ip_address

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from keyferry.errors import NotSent
from keyferry.grants.document import host_of
from keyferry.io.addresses import AddressPolicy, HostRule, Target
from keyferry.spec.common import Url

DECLARED = TypeAdapter(Url)
HOSTS = (
    "auth.example.org",
    "AUTH.example.ORG",
    "auth.example.org.",
    "127.0.0.1",
    "127.1",
    "0x7f.0.0.1",
    "2130706433",
    "0177.0.0.1",
    "[::1]",
    "[::FFFF:127.0.0.1]",
    "[0:0:0:0:0:0:0:1]",
    "①②⑦.0.0.1",
    "bücher.example",
    "xn--bcher-kva.example",
    "auth_example.org",
)
MARKS = ("", "", "@", ":@", "/", "\\", "#", "?", "%2f", "%40", ".", "[", "]", "\t", " ")
PORTS = ("", "", ":443", ":80", ":8443", ":0", ":00443", ":")
URLS = st.builds(
    "{}://{}{}{}{}{}".format,
    st.sampled_from(("https", "http", "HTTPS")),
    st.sampled_from(("", "", "user", *HOSTS)),
    st.sampled_from(MARKS),
    st.sampled_from(HOSTS),
    st.sampled_from(PORTS),
    st.sampled_from(("", "/token", "/@127.0.0.1", "?auth.example.org", "#@127.0.0.1", "\\@127.0.0.1")),
)


def target_of(url: str) -> Target:
    """Return where the HTTP driver would connect to, any host being allowed."""
    spelled = ("auth.example.org", "bücher.example", "xn--bcher-kva.example", "auth_example.org", "127.0.0.1", "[::1]")
    rules = tuple(HostRule.parse(host) for host in spelled)
    return AddressPolicy(allowed=rules).check_url(url)


@settings(max_examples=400, deadline=None)
@given(URLS)
def test_no_spelling_leads_elsewhere(url: str) -> None:
    try:
        DECLARED.validate_python(url)
        target = target_of(url)
    except (ValidationError, NotSent):
        return  # it can be neither declared nor requested
    checked = host_of(url)
    host, port = (checked, 443 if url.lower().startswith("https") else 80)
    if not checked.endswith("]") and ":" in checked:
        name, _, number = checked.rpartition(":")
        host, port = name, int(number)
    assert port == target.port
    assert _same(host, target.host)


def _same(checked: str, requested: str) -> bool:
    if checked.startswith("["):
        return ip_address(checked.strip("[]")) == ip_address(requested.strip("[]"))
    return checked.removesuffix(".") == requested


def test_the_usual_spellings_are_among_them() -> None:
    """A property of no URL at all would hold as well."""
    for url, host in {
        "https://AUTH.example.ORG:443/token": "auth.example.org",
        "https://auth.example.org:8443": "auth.example.org:8443",
        "http://[::1]/": "[::1]",
    }.items():
        assert DECLARED.validate_python(url) == url
        assert host_of(url) == host
        assert target_of(url).host == host.removesuffix(":8443")
