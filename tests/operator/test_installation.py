"""The settings file: what it says is what the engine is given, and a mistake in it is named by its field."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from keyferry.cli.exits import CommandError
from keyferry.errors import NotSent
from keyferry.secret import SecretValue
from keyferry_operator.addresses import Addresses
from keyferry_operator.command import app
from keyferry_operator.installation import Installation, InstallationError, read_installation
from tests.operator.test_admission import provider

if TYPE_CHECKING:
    from pathlib import Path

    from keyferry.spec.resources import ProviderResource


def settings(**providers: Any) -> Installation:
    return Installation.model_validate({"providers": providers})


def of_namespace(name: str) -> ProviderResource:
    found = provider("TokenProvider")
    return replace(found, key=replace(found.key, namespace=name))


def refusal(addresses: Addresses, resource: ProviderResource, url: str) -> str:
    with pytest.raises(NotSent) as caught:
        addresses.policy(resource).check_url(url)
    return caught.value.message


def test_private_addresses_are_open_to_an_administrators_provider_alone() -> None:
    addresses = Addresses(settings())
    addresses.policy(provider()).check_url("https://10.0.0.1/")
    said = refusal(addresses, provider("TokenProvider"), "https://10.0.0.1:8443/")
    assert 'an entry {host: "10.0.0.1", port: 8443} in the installation\'s providers.allowedHosts' in said
    assert "open to ClusterTokenProviders without one" in said
    assert "open to ClusterTokenProviders" not in refusal(addresses, provider(), "https://127.0.0.1/")
    for each in (provider(), provider("TokenProvider")):
        assert "plainHTTP: true" in refusal(addresses, each, "http://auth.example.org/")
        assert "which is never allowed" in refusal(addresses, each, "https://169.254.169.254/")


def test_an_entry_opens_a_host_to_the_namespaces_that_it_names() -> None:
    entry = {"host": "10.0.0.1", "port": 8443, "namespaces": ["batch"]}
    addresses = Addresses(settings(allowedHosts=[entry, {"host": "10.0.0.2", "plainHTTP": True}]))
    here, elsewhere = addresses.policy(of_namespace("batch")), addresses.policy(of_namespace("other"))
    here.check_url("https://10.0.0.1:8443/")
    assert "plain HTTP" in refusal(addresses, of_namespace("batch"), "http://10.0.0.1:8443/")
    assert "(private)" in refusal(addresses, of_namespace("batch"), "https://10.0.0.1/")
    assert "(private)" in refusal(addresses, of_namespace("other"), "https://10.0.0.1:8443/")
    for policy in (here, elsewhere, addresses.policy(provider())):
        policy.check_url("http://10.0.0.2:1234/")
    addresses.policy(provider()).check_url("https://10.0.0.1:8443/")
    assert elsewhere is addresses.policy(of_namespace("third")), "connections are shared where the answer is the same"


def test_a_denied_network_is_closed_to_everybody() -> None:
    addresses = Addresses(settings(allowedHosts=[{"host": "10.96.0.1"}], deniedCIDRs=["10.96.0.0/12", "fd00::/8"]))
    for url in ("https://10.96.0.1/", "https://[fd00::1]/", "https://[::ffff:10.96.0.1]/", "https://[64:ff9b::a60:1]/"):
        for each in (provider(), provider("TokenProvider")):
            said = refusal(addresses, each, url)
            assert "(denied); the installation closes this network (providers.deniedCIDRs)" in said


def test_the_proxy_is_for_all_but_those_that_are_named() -> None:
    url = SecretValue("http://proxy.example.org:3128")
    assert Addresses(settings()).proxy(provider()) is None
    assert Addresses(settings(), proxy=url).proxy(provider()) is url
    for name, direct in (("auth.example.org", True), ("auth.example.org:443", True), ("auth.example.org:8443", False)):
        past = Installation.model_validate({"proxy": {"noProxy": [name]}})
        assert (Addresses(past, proxy=url).proxy(provider()) is None) is direct


def read(directory: Path, text: str) -> Installation:
    file = directory / "settings.yaml"
    file.write_text(text)
    return read_installation(file)


def test_an_empty_file_allows_nothing(tmp_path: Path) -> None:
    assert read(tmp_path, "") == Installation()
    assert read(tmp_path, "providers: {allowedHosts: [], deniedCIDRs: []}\n") == Installation()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("provider: {}", "provider is not a known field; did you mean providers?"),
        ("providers: {allowedHosts: [{port: 1}]}", "providers.allowedHosts[0].host is missing"),
        ("providers: {allowedHosts: [{host: 'https://a'}]}", "must be a host name, an IPv4 address"),
        ("providers: {allowedHosts: [{host: 'a:8080'}]}", "must not hold a port; it belongs to port"),
        ("providers: {allowedHosts: [{host: a, port: 0}]}", "providers.allowedHosts[0].port"),
        ("providers: {allowedHosts: [{host: a, plainHttp: true}]}", "did you mean plainHTTP?"),
        ("providers: {deniedCIDRs: [10.0.0.1/8]}", "providers.deniedCIDRs[0] must be a network such as 10.0.0.0/8"),
        ("proxy: {noProxy: ['https://a']}", "is not HOST[:PORT]"),
        ("targets: {labels: ['a b']}", "targets.labels[0] must be a key such as example.org/team"),
        ("targets: {labels: ['*/team']}", "targets.labels[0]"),
        ("a: [", "settings.yaml"),
        ("[]", "settings.yaml"),
        ("a: 1\na: 2", "written twice"),
    ],
)
def test_a_mistake_is_named_by_its_field(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InstallationError) as caught:
        read(tmp_path, text)
    assert words in str(caught.value)
    assert str(caught.value).startswith(str(tmp_path))


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InstallationError, match="cannot be read: No such file"):
        read_installation(tmp_path / "none.yaml")


KUBECONFIG = """
{apiVersion: v1, kind: Config, current-context: one, contexts: [{name: one, context: {cluster: one, user: one}}],
 clusters: [{name: one, cluster: {server: "https://127.0.0.1:1"}}], users: [{name: one, user: {token: none}}]}
"""


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--settings", "settings.yaml"], "--settings: settings.yaml: targets.label is not a known field"),
        (["--settings", "none.yaml"], "--settings: none.yaml cannot be read"),
        (["--proxy", "http://user:canary@"], "--proxy: the proxy is not a URL such as http://"),
    ],
)
def test_the_operator_does_not_start_with_settings_that_it_does_not_understand(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "settings.yaml").write_text("targets: {label: []}")
    (tmp_path / "config").write_text(KUBECONFIG)
    ended = CliRunner().invoke(app, ["--namespace", "home", *flags], env={"KUBECONFIG": str(tmp_path / "config")})
    assert isinstance(ended.exception, CommandError), ended.output
    assert words in str(ended.exception)
    assert "canary" not in str(ended.exception)
