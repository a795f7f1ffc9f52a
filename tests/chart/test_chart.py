"""The chart: what it renders, and which values it refuses."""

from __future__ import annotations

import json
import re
from ipaddress import ip_network
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from typer.testing import CliRunner

from keyferry.cli.exits import CommandError
from keyferry.web.page.command import INVALID
from keyferry.web.page.command import main as run_page
from keyferry.web.page.peers import parse_peers
from keyferry.web.serving import parse_address
from keyferry_operator.command import app
from keyferry_operator.installation import (
    AllowedHost,
    Installation,
    SidecarSettings,
    TargetSettings,
    read_installation,
)
from keyferry_operator.webhook import PATH, WEBHOOK
from tests.chart.conftest import CHART, HOME
from tests.support.servers import free_port

if TYPE_CHECKING:
    from tests.chart.conftest import Document, Helm, Rendered

pytestmark = pytest.mark.cluster

DOCS = Path(__file__).parents[2] / "docs"
ALL_ON: dict[str, Any] = {
    "replicas": 3,
    "shards": 8,
    "watch": {"namespaces": ["team-a"]},
    "providers": {
        "allowedHosts": [
            {"host": "keycloak.auth.svc", "port": 8080, "plainHTTP": True, "namespaces": ["team-a"]},
            {"host": "[fd00::7]"},
        ],
        "deniedCIDRs": ["10.96.0.0/12", "fd00:96::/112"],
    },
    "proxy": {"url": "http://proxy.example.org:3128", "noProxy": ["keycloak.auth.svc", "[fd00::7]:8443"]},
    "targets": {"labels": ["team", "example.org/*"], "annotations": ["*"]},
    "apiAudiences": ["https://api.example.org"],
    "suspendAll": True,
    "serviceAccountTokens": {"enabled": True},
    "touchPods": {"enabled": True},
    "serviceMonitor": {"enabled": True, "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True},
    "dashboard": {"enabled": True},
    "networkPolicy": {"enabled": True, "metricsFrom": [{"namespaceSelector": {}}]},
    "certificates": {"source": "CertManager", "issuerRef": {"name": "internal"}},
    "page": {
        "enabled": True,
        "url": "https://keyferry.example.org",
        "trustedProxies": ["10.0.3.0/24", "2001:db8::7", "2001:db8:5::/64", "192.0.2.7"],
        "forwardedHeader": "Forwarded",
    },
    "image": {"pullSecrets": [{"name": "registry"}]},
    "podLabels": {"team": "platform"},
    "tolerations": [{"operator": "Exists"}],
    "priorityClassName": "system-cluster-critical",
}


def pods(rendered: Rendered) -> list[Document]:
    """The specs of all pods of the release."""
    return [
        *(document["spec"]["template"]["spec"] for document in rendered.of("Deployment")),
        *(document["spec"] for document in rendered.of("Pod")),
    ]


@pytest.mark.parametrize("values", [{}, ALL_ON, {"metrics": {"enabled": False}}], ids=["default", "all on", "quiet"])
def test_lint(helm: Helm, values: Document) -> None:
    well, said = helm.run("lint", CHART, "--strict", values=values)
    assert well, said


@pytest.mark.parametrize("values", [{}, ALL_ON, {"runAsUser": None}], ids=["default", "all on", "OpenShift"])
def test_pods_are_restricted(helm: Helm, values: Document) -> None:
    """The Pod Security Standard "restricted", and a root that cannot be written."""
    found = pods(helm.template(values))
    assert len(found) == (3 if "page" in values else 2)
    for pod in found:
        context = pod["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        wanted = {} if "runAsUser" in values else dict.fromkeys(("runAsUser", "runAsGroup", "fsGroup"), 65532)
        assert {name: context[name] for name in ("runAsUser", "runAsGroup", "fsGroup") if name in context} == wanted
        assert not pod.keys() & {"hostNetwork", "hostPID", "hostIPC", "initContainers"}
        kinds = {next(name for name in volume if name != "name") for volume in pod["volumes"]}
        assert kinds <= {"emptyDir", "configMap", "secret", "projected"}
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "privileged": False,
                "capabilities": {"drop": ["ALL"]},
            }
            assert not [port for port in container.get("ports", ()) if "hostPort" in port]
            assert {"requests", "limits"} <= container["resources"].keys()


def test_what_may_be_written_has_a_limit(helm: Helm) -> None:
    pod = pods(helm.template())[0]
    assert all(volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"] if "configMap" not in volume)
    mounts = {mount["mountPath"]: mount.get("readOnly", False) for mount in pod["containers"][0]["volumeMounts"]}
    assert mounts == {"/etc/keyferry": True, "/var/lib/keyferry": False, "/tmp": False}  # noqa: S108 - in the container


def test_only_the_operator_has_a_token(helm: Helm) -> None:
    rendered = helm.template()
    assert rendered.one("ServiceAccount")["automountServiceAccountToken"] is False
    assert [pod["automountServiceAccountToken"] for pod in pods(rendered)] == [True, False]

    with_page = helm.template({"page": {"enabled": True, "url": "https://keyferry.example.org"}})
    page = with_page.one("Deployment", "kf-keyferry-page")["spec"]["template"]["spec"]
    assert page["automountServiceAccountToken"] is False
    account = with_page.one("ServiceAccount", "kf-keyferry-page")
    assert page["serviceAccountName"] == account["metadata"]["name"]
    assert account["automountServiceAccountToken"] is False
    bound = [subject["name"] for each in with_page if "Binding" in each["kind"] for subject in each["subjects"]]
    assert set(bound) == {"kf-keyferry"}
    (volume,) = (each for each in page["volumes"] if "projected" in each)
    token, authorities = volume["projected"]["sources"]
    assert token["serviceAccountToken"]["audience"] == "keyferry"
    assert authorities["configMap"]["name"] == "keyferry-ca"


@pytest.mark.parametrize("values", [{}, ALL_ON], ids=["default", "all on"])
def test_the_operator_knows_every_flag(helm: Helm, values: Document) -> None:
    """The command itself parses the arguments; it ends for want of a cluster, not of an option."""
    command, *flags = helm.template(values).container["args"]
    assert command == "operator"
    nowhere = str(helm.scratch / "nothing")
    ended = CliRunner().invoke(app, flags, env={"KUBECONFIG": nowhere, "HOME": nowhere, "POD_NAMESPACE": HOME})
    assert isinstance(ended.exception, CommandError), ended.output
    assert "kubeconfig" in str(ended.exception)
    given = [flag.removeprefix("--").split("=", 1) for flag in flags if "=" in flag]
    for name, value in given:
        if name == "metrics":
            assert parse_address(value) == ("0.0.0.0", 9464)  # noqa: S104 - probes and Prometheus come from outside


def test_the_page_knows_every_flag(helm: Helm, capsys: pytest.CaptureFixture[str]) -> None:
    """The command itself parses the arguments; it ends for the half of a pair that is added here."""
    page = helm.template(ALL_ON).one("Deployment", "kf-keyferry-page")["spec"]["template"]["spec"]["containers"][0]
    command, *flags = page["args"]
    assert command == "page"
    given = dict(flag.removeprefix("--").split("=", 1) for flag in flags)
    assert given["broker"] == f"https://kf-keyferry-broker-replicas.{HOME}.svc:8443"
    assert given["page-url"] == "https://keyferry.example.org"
    peers = parse_peers(given["trusted-proxies"], given["forwarded-header"])
    assert peers.of("10.0.3.1", ["for=203.0.113.1"]) == "203.0.113.1"
    taken = [f"--listen=127.0.0.1:{free_port()}", "--tls-certificate=/nowhere"]  # one half of a pair
    assert run_page([*flags, *taken]) == INVALID
    assert "--tls-certificate and --tls-key go together" in capsys.readouterr().err
    (probed,) = {probe["httpGet"]["port"] for name, probe in page.items() if name.endswith("Probe")}
    assert probed == page["ports"][0]["name"]


def test_arguments(helm: Helm) -> None:
    assert helm.template(ALL_ON).container["args"] == [
        "operator",
        "--escrow=/var/lib/keyferry",
        "--metrics=0.0.0.0:9464",
        "--leader-election",
        "--shards=8",
        "--watch-namespace=team-a",
        "--settings=/etc/keyferry/settings.yaml",
        "--broker=0.0.0.0:8443",
        "--broker-service=kf-keyferry-broker",
        f"--broker-host=kf-keyferry-broker-replicas.{HOME}.svc",
        "--broker-certificate=/etc/keyferry-broker",
        "--page-url=https://keyferry.example.org",
        "--page-account=kf-keyferry-page",
        "--api-audience=https://api.example.org",
        "--service-account-tokens",
        "--touch-pods",
        "--suspend-all",
    ]
    assert "--webhook=kf-keyferry" in helm.template().container["args"]
    quiet = {"leaderElection": {"enabled": False}, "metrics": {"enabled": False}, "broker": {"enabled": False}}
    alone = helm.template(quiet)
    assert alone.container["args"] == [
        "operator",
        "--escrow=/var/lib/keyferry",
        "--no-leader-election",
        "--settings=/etc/keyferry/settings.yaml",
    ]
    assert alone.one("Deployment")["spec"]["strategy"] == {"type": "Recreate"}
    sources = {entry["name"]: entry.get("valueFrom") for entry in alone.container["env"]}
    assert sources["POD_NAMESPACE"] == {"fieldRef": {"fieldPath": "metadata.namespace"}}
    assert sources["POD_NAME"] == {"fieldRef": {"fieldPath": "metadata.name"}}


def settings_of(rendered: Rendered, scratch: Path) -> Installation:
    """What the operator makes of the settings that the chart writes."""
    file = scratch / "settings.yaml"
    file.write_text(rendered.one("ConfigMap", "kf-keyferry-settings")["data"]["settings.yaml"])
    return read_installation(file)


def test_settings_reach_the_operator_as_they_were_written(helm: Helm) -> None:
    resources = {"requests": {"cpu": "5m", "memory": "40Mi"}, "limits": {"memory": "128Mi"}}
    injected = SidecarSettings(image="keyferry/keyferry:0.1.0", resources=resources)
    assert settings_of(helm.template(), helm.scratch) == Installation(sidecar=injected)
    assert settings_of(helm.template({"webhook": {"enabled": False}}), helm.scratch) == Installation()
    rendered = helm.template(ALL_ON)
    found = settings_of(rendered, helm.scratch)
    assert found.providers.allowed_hosts == (
        AllowedHost(host="keycloak.auth.svc", port=8080, plain_http=True, namespaces=("team-a",)),
        AllowedHost(host="[fd00::7]"),
    )
    assert found.providers.denied_cidrs == (ip_network("10.96.0.0/12"), ip_network("fd00:96::/112"))
    assert [str(rule) for rule in found.proxy.rules()] == ["keycloak.auth.svc", "[fd00::7]:8443"]
    assert found.targets == TargetSettings(labels=("team", "example.org/*"), annotations=("*",))
    (volume,) = (each for each in pods(rendered)[0]["volumes"] if each["name"] == "settings")
    assert volume["configMap"] == {"name": "kf-keyferry-settings"}
    template = rendered.of("Deployment")[0]["spec"]["template"]["metadata"]["annotations"]["checksum/settings"]
    assert helm.template().one("Deployment")["spec"]["template"]["metadata"]["annotations"]["checksum/settings"] != (
        template
    )


def test_the_proxy(helm: Helm) -> None:
    def proxy(**values: Any) -> Document | None:
        entries = helm.template({"proxy": values}).container["env"]
        return next((entry for entry in entries if entry["name"] == "KEYFERRY_PROXY"), None)

    assert proxy() is None
    assert proxy(url="http://proxy:3128") == {"name": "KEYFERRY_PROXY", "value": "http://proxy:3128"}
    assert proxy(urlFrom={"name": "proxy", "key": "url"}) == {
        "name": "KEYFERRY_PROXY",
        "valueFrom": {"secretKeyRef": {"name": "proxy", "key": "url"}},
    }


def test_probes_ask_where_the_metrics_are(helm: Helm) -> None:
    container = helm.template().container
    probes = {name: probe["httpGet"] for name, probe in container.items() if name.endswith("Probe")}
    assert probes.keys() == {"startupProbe", "livenessProbe", "readinessProbe"}
    assert {probe["port"] for probe in probes.values()} == {container["ports"][0]["name"]}
    assert not [probe for probe in probes.values() if "host" in probe]
    assert {name: probe["path"] for name, probe in probes.items()} == {
        "startupProbe": "/healthz",
        "livenessProbe": "/healthz",
        "readinessProbe": "/readyz",
    }
    narrow = helm.template({"metrics": {"host": "127.0.0.1"}}).container
    assert narrow["livenessProbe"]["httpGet"]["host"] == "127.0.0.1"
    assert not [name for name in helm.template({"metrics": {"enabled": False}}).container if name.endswith("Probe")]


@pytest.mark.parametrize(("host", "asked"), [("[::]", None), ("127.0.0.1", "127.0.0.1"), ("[::1]", "::1")])
def test_probes_ask_where_the_page_is(helm: Helm, host: str, asked: str | None) -> None:
    rendered = helm.template({"page": {"enabled": True, "url": "https://keyferry.example.org", "host": host}})
    (container,) = rendered.one("Deployment", "kf-keyferry-page")["spec"]["template"]["spec"]["containers"]
    assert {probe: container[probe]["httpGet"].get("host") for probe in ("livenessProbe", "readinessProbe")} == {
        "livenessProbe": asked,
        "readinessProbe": asked,
    }


def test_the_image(helm: Helm) -> None:
    assert helm.template().container["image"] == "keyferry/keyferry:0.1.0"
    digest = f"sha256:{'a' * 64}"
    pinned = helm.template({"image": {"repository": "registry.example.org:5000/x/kf", "tag": "9", "digest": digest}})
    assert {pod["containers"][0]["image"] for pod in pods(pinned)} == {f"registry.example.org:5000/x/kf@{digest}"}


def test_selectors_find_the_operator_and_not_the_test(helm: Helm) -> None:
    rendered = helm.template(ALL_ON)
    deployment = rendered.one("Deployment", "kf-keyferry")["spec"]
    chosen = deployment["selector"]["matchLabels"]
    assert chosen.items() <= deployment["template"]["metadata"]["labels"].items()
    assert not chosen.items() <= rendered.one("Pod")["metadata"]["labels"].items()
    assert rendered.one("PodDisruptionBudget")["spec"]["selector"]["matchLabels"] == chosen
    assert rendered.one("NetworkPolicy", "kf-keyferry")["spec"]["podSelector"]["matchLabels"] == chosen
    services = {each["metadata"]["name"]: each for each in rendered.of("Service")}
    page = services.pop("kf-keyferry-page")
    assert services.keys() == {"kf-keyferry-metrics", "kf-keyferry-broker", "kf-keyferry-broker-replicas"}
    assert all(each["spec"]["selector"] == chosen for each in services.values())
    own = rendered.one("Deployment", "kf-keyferry-page")["spec"]
    assert page["spec"]["selector"] == own["selector"]["matchLabels"]
    assert own["selector"]["matchLabels"].items() <= own["template"]["metadata"]["labels"].items()
    assert rendered.one("NetworkPolicy", "kf-keyferry-page")["spec"]["podSelector"] == own["selector"]
    assert not chosen.items() <= own["template"]["metadata"]["labels"].items()
    monitor = rendered.one("ServiceMonitor")
    monitored = monitor["spec"]["selector"]["matchLabels"].items()
    found = [name for name, each in services.items() if monitored <= each["metadata"]["labels"].items()]
    assert found == ["kf-keyferry-metrics"]
    assert monitor["spec"]["endpoints"][0]["honorLabels"] is True
    assert monitor["metadata"]["labels"]["release"] == "prometheus"
    for spread in deployment["template"]["spec"]["topologySpreadConstraints"]:
        assert spread["labelSelector"]["matchLabels"] == chosen


def test_the_network_policy_opens_the_ports_of_allowed_hosts(helm: Helm) -> None:
    policy = helm.template(ALL_ON).one("NetworkPolicy", "kf-keyferry")["spec"]
    assert {(port["protocol"], port["port"]) for port in policy["egress"][0]["ports"]} == {
        ("UDP", 53),
        ("TCP", 53),
        ("TCP", 443),
        ("TCP", 6443),
        ("TCP", 8080),
        ("TCP", 3128),
    }
    assert [each["ports"] for each in policy["ingress"]] == [
        [{"protocol": "TCP", "port": 9464}],
        [{"protocol": "TCP", "port": 8443}],
    ]
    assert "from" not in policy["ingress"][1]
    narrow = {**ALL_ON, "networkPolicy": {"enabled": True, "brokerFrom": [{"ipBlock": {"cidr": "10.0.0.0/8"}}]}}
    found = helm.template(narrow)
    block, page = found.one("NetworkPolicy", "kf-keyferry")["spec"]["ingress"][1]["from"]
    assert block == {"ipBlock": {"cidr": "10.0.0.0/8"}}
    assert page["podSelector"] == found.one("Deployment", "kf-keyferry-page")["spec"]["selector"]
    ways = found.one("NetworkPolicy", "kf-keyferry-page")["spec"]["egress"]
    assert [port["port"] for way in ways for port in way["ports"]] == [53, 53, 8443]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://10.0.0.1", 80),
        ("https://proxy.example.org/", 443),
        ("http://[fd00::7]:3128/", 3128),
        ("http://[fd00::7]", 80),
    ],
)
def test_the_network_policy_opens_the_proxys_port(helm: Helm, url: str, port: int) -> None:
    values = {"proxy": {"url": url}, "networkPolicy": {"enabled": True, "egressPorts": []}}
    policy = helm.template(values).one("NetworkPolicy")["spec"]
    assert [each["port"] for each in policy["egress"][0]["ports"]] == [53, 53, port]


def test_crds_come_with_the_release_and_stay(helm: Helm) -> None:
    kept = helm.template({"crds": {"enabled": True, "keep": True}}).of("CustomResourceDefinition")
    assert {crd["metadata"]["annotations"]["helm.sh/resource-policy"] for crd in kept} == {"keep"}
    assert len(kept) == 3
    given_up = helm.template({"crds": {"enabled": True, "keep": False}}).of("CustomResourceDefinition")
    assert not [crd for crd in given_up if "annotations" in crd["metadata"]]


# Monitoring


def test_alerts_are_those_of_the_documentation(helm: Helm) -> None:
    (group,) = helm.template(ALL_ON).one("PrometheusRule")["spec"]["groups"]
    alerts = {rule["alert"]: rule for rule in group["rules"]}
    told = re.search(r"## Alerts\n+```yaml\n(.*?)```", (DOCS / "metrics.md").read_text(), re.DOTALL)
    assert told is not None
    documented = {rule["alert"]: rule for rule in yaml.safe_load(told[1])["groups"][0]["rules"]}
    assert documented.keys() <= alerts.keys()
    for name in documented.keys() - {"KeyferryGone"}:  # which of several replicas need not answer
        assert alerts[name]["expr"] == documented[name]["expr"]
        assert alerts[name]["labels"] == documented[name]["labels"]


def test_alerts_and_dashboard_use_metrics_that_exist(helm: Helm) -> None:
    rendered = helm.template(ALL_ON)
    (group,) = rendered.one("PrometheusRule")["spec"]["groups"]
    board = json.loads(rendered.one("ConfigMap", "kf-keyferry-dashboard")["data"]["keyferry.json"])
    queries = [rule["expr"] for rule in group["rules"]]
    queries += [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    queries += [variable["query"]["query"] for variable in board["templating"]["list"] if variable["type"] == "query"]
    used = {name for query in queries for name in re.findall(r"\bkeyferry_\w+", query)}
    known = set(re.findall(r"^\| `(keyferry_\w+)`", (DOCS / "metrics.md").read_text(), re.MULTILINE))
    assert {name.removesuffix("_bucket") for name in used} <= known
    assert len(board["panels"]) == len({panel["id"] for panel in board["panels"]}) > 10


# Sidecars


def test_the_webhook_is_asked_about_pods_that_name_keyferry(helm: Helm) -> None:
    (webhook,) = helm.template().one("MutatingWebhookConfiguration")["webhooks"]
    assert webhook["name"] == WEBHOOK
    assert webhook["clientConfig"]["service"] == {
        "name": "kf-keyferry-broker",
        "namespace": HOME,
        "path": PATH,
        "port": 8443,
    }
    assert (webhook["failurePolicy"], webhook["sideEffects"], webhook["reinvocationPolicy"]) == (
        "Fail",
        "None",
        "IfNeeded",
    )
    (condition,) = webhook["matchConditions"]
    assert "name.startsWith('keyferry.dev/')" in condition["expression"]
    (excluded,) = webhook["namespaceSelector"]["matchExpressions"]
    assert excluded["values"] == ["kube-system", HOME]
    labelled: dict[str, Any] = {"matchLabels": {"team": "a"}, "matchExpressions": [{"key": "x", "operator": "Exists"}]}
    chosen = helm.template({"webhook": {"namespaceSelector": labelled}}).one("MutatingWebhookConfiguration")
    selector = chosen["webhooks"][0]["namespaceSelector"]
    assert selector == {"matchLabels": {"team": "a"}, "matchExpressions": [excluded, labelled["matchExpressions"][0]]}


@pytest.mark.parametrize(
    "values", [{"watch": {"namespaces": ["team-a"]}}, {"webhook": {"enabled": False}}, {"broker": {"enabled": False}}]
)
def test_no_webhook_without_the_cluster_or_the_broker(helm: Helm, values: Document) -> None:
    rendered = helm.template(values)
    assert not rendered.of("MutatingWebhookConfiguration")
    assert not [flag for flag in rendered.container["args"] if "webhook" in flag]
    assert "sidecar" not in rendered.one("ConfigMap", "kf-keyferry-settings")["data"]["settings.yaml"]


def test_the_brokers_certificate(helm: Helm) -> None:
    def found(**certificates: Any) -> tuple[Rendered, Document | None]:
        rendered = helm.template({"certificates": certificates})
        volumes = {volume["name"]: volume for volume in pods(rendered)[0]["volumes"]}
        mounted = {mount["name"]: mount["mountPath"] for mount in rendered.container["volumeMounts"]}
        assert (mounted.get("broker-certificate") == "/etc/keyferry-broker") == ("broker-certificate" in volumes)
        flag = "--broker-certificate=/etc/keyferry-broker" in rendered.container["args"]
        assert flag == ("broker-certificate" in volumes)
        return rendered, volumes.get("broker-certificate", {}).get("secret")

    assert found()[1] is None
    assert found(source="Secret", secretName="mine")[1] == {"secretName": "mine"}
    rendered, secret = found(source="CertManager", issuerRef={"kind": "ClusterIssuer", "name": "internal"})
    certificate = rendered.one("Certificate")["spec"]
    assert secret == {"secretName": certificate["secretName"]} == {"secretName": "kf-keyferry-broker-tls"}
    assert certificate["issuerRef"] == {"group": "cert-manager.io", "kind": "ClusterIssuer", "name": "internal"}
    for service in ("kf-keyferry-broker", "kf-keyferry-broker-replicas"):
        assert rendered.one("Service", service)
        assert f"{service}.{HOME}.svc" in certificate["dnsNames"]


def test_the_image_of_sidecars(helm: Helm) -> None:
    def image(**values: Any) -> Any:
        found = settings_of(helm.template(values), helm.scratch).sidecar
        assert found is not None
        return found.image

    digest = f"sha256:{'a' * 64}"
    assert image() == "keyferry/keyferry:0.1.0"
    assert image(image={"repository": "a/kf", "tag": "9"}) == "a/kf:9"
    assert image(image={"repository": "a/kf", "digest": digest}) == f"a/kf@{digest}"
    assert image(image={"digest": digest}, sidecar={"image": {"tag": "8"}}) == "keyferry/keyferry:8"
    assert image(image={"digest": digest}, sidecar={"image": {"repository": "b/kf"}}) == "b/kf:0.1.0"
    assert image(sidecar={"image": {"digest": digest}}) == f"keyferry/keyferry@{digest}"


# Values


@pytest.mark.parametrize(
    ("values", "field"),
    [
        ({"replica": 2}, "replica"),
        ({"replicas": "two"}, "/replicas"),
        ({"shards": 0}, "/shards"),
        ({"replicas": 2, "leaderElection": {"enabled": False}}, "replicas"),
        ({"watch": {"namespace": "team"}}, "namespace"),
        ({"watch": {"namespaces": ["Team"]}}, "/watch/namespaces/0"),
        ({"watch": {"namespaces": ["a", "a"]}}, "/watch/namespaces"),
        ({"providers": {"allowedHosts": ["auth.example.org"]}}, "/providers/allowedHosts/0"),
        ({"providers": {"allowedHosts": [{"host": "https://auth.example.org"}]}}, "/providers/allowedHosts/0/host"),
        ({"providers": {"allowedHosts": [{"host": "a", "port": 70000}]}}, "/providers/allowedHosts/0/port"),
        ({"providers": {"allowedHosts": [{"host": "a", "plainHttp": True}]}}, "plainHttp"),
        ({"providers": {"allowedHosts": [{"host": "a", "namespaces": ["A"]}]}}, "/namespaces/0"),
        ({"providers": {"deniedCIDRs": ["10.0.0.1"]}}, "/providers/deniedCIDRs/0"),
        ({"proxy": {"url": "http://user:password@proxy:3128"}}, "/proxy/url"),
        ({"proxy": {"url": "http://proxy", "urlFrom": {"name": "proxy"}}}, "proxy.urlFrom"),
        ({"proxy": {"noProxy": ["https://a"]}}, "/proxy/noProxy/0"),
        ({"targets": {"labels": ["a b"]}}, "/targets/labels/0"),
        ({"image": {"digest": "sha256:short"}}, "/image/digest"),
        ({"image": {"repository": "registry.example.org/kf:latest"}}, "/image/repository"),
        ({"image": {"pullPolicy": "Sometimes"}}, "/image/pullPolicy"),
        ({"runAsUser": 0}, "/runAsUser"),
        ({"serviceAccountTokens": {"enabled": "yes"}}, "/serviceAccountTokens/enabled"),
        ({"rbac": {"aggregatedRoles": True}}, "/rbac/aggregatedRoles"),
        ({"serviceAccount": {"create": False}}, "serviceAccount.name"),
        ({"metrics": {"enabled": False}, "serviceMonitor": {"enabled": True}}, "serviceMonitor.enabled"),
        ({"metrics": {"enabled": False}, "prometheusRule": {"enabled": True}}, "prometheusRule.enabled"),
        ({"podDisruptionBudget": {"maxUnavailable": 0}}, "/podDisruptionBudget/maxUnavailable"),
        ({"podDisruptionBudget": {"maxUnavailable": "some"}}, "/podDisruptionBudget/maxUnavailable"),
        ({"logLevel": "trace"}, "/logLevel"),
        ({"broker": {"host": "0.0.0.0:1"}}, "/broker/host"),
        ({"certificates": {"source": "Somebody"}}, "/certificates/source"),
        ({"certificates": {"source": "Secret"}}, "certificates.secretName"),
        ({"certificates": {"source": "CertManager"}}, "certificates.issuerRef.name"),
        ({"webhook": {"failurePolicy": "Maybe"}}, "/webhook/failurePolicy"),
        ({"webhook": {"timeoutSeconds": 60}}, "/webhook/timeoutSeconds"),
        ({"webhook": {"namespaceSelector": {"labels": {}}}}, "/webhook/namespaceSelector"),
        ({"sidecar": {"minimumRemaining": "5 minutes"}}, "/sidecar/minimumRemaining"),
        ({"sidecar": {"image": {"digest": "sha256:short"}}}, "/sidecar/image/digest"),
        ({"page": {"enabled": True}}, "page.url"),
        ({"page": {"url": "http://keyferry.example.org"}}, "/page/url"),
        ({"page": {"trustedProxies": ["0.0.0.0/0"]}}, "/page/trustedProxies/0"),
        ({"page": {"trustedProxies": ["ingress"]}}, "/page/trustedProxies/0"),
        ({"page": {"forwardedHeader": "X-Real-IP"}}, "/page/forwardedHeader"),
        ({"page": {"enabled": True, "url": "https://a"}, "broker": {"enabled": False}}, "page.enabled"),
        ({"escrow": {"sizeLimit": "much"}}, "/escrow/sizeLimit"),
        ({"metrics": {"host": "metrics"}}, "/metrics/host"),
        ({"fullnameOverride": "Upper"}, "/fullnameOverride"),
    ],
)
def test_bad_values_are_refused_by_name(helm: Helm, values: Document, field: str) -> None:
    assert field in helm.refusal(values)


def test_every_value_is_in_the_schema_with_a_description() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())

    def compare(given: Document, described: Document, path: str) -> None:
        if "properties" not in described:
            return
        assert given.keys() == described["properties"].keys() - {"global"}, path
        assert described["additionalProperties"] is False, path
        for name, each in described["properties"].items():
            assert each.get("description"), f"{path}/{name}"
            if isinstance(given.get(name), dict) and name not in ("resources", "namespaceSelector"):
                compare(given[name], each, f"{path}{name}/")

    compare(values, schema, "")


def test_names_of_a_release(helm: Helm) -> None:
    assert helm.template(release="keyferry").one("Deployment")["metadata"]["name"] == "keyferry"
    longest = helm.template({"watch": {"namespaces": ["t" * 63]}, "touchPods": {"enabled": True}}, release="r" * 53)
    assert max(len(document["metadata"]["name"]) for document in longest) <= 63


def test_notes_say_what_to_type_next(helm: Helm) -> None:
    values = {"crds": {"enabled": False}, "watch": {"namespaces": ["team-a"]}, "suspendAll": True}
    well, said = helm.run(
        "install", "kf", CHART, "--namespace", HOME, "--dry-run=client", "--output=json", values=values
    )
    assert well, said
    notes = json.loads(said)["info"]["notes"]
    assert "kubectl -n team-a apply -f example.yaml" in notes
    assert "suspendAll=false" in notes
