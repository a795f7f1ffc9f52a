"""What a pod gets that asks for an identity."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest

from keyferry.sidecar.settings import parse
from keyferry_operator.injection import Refused
from tests.operator.injection.samples import (
    SETTINGS,
    asking,
    container,
    injected,
    injection,
    mounts,
    pod,
    spec,
    variables,
    volumes,
)

FILES = {"name": "keyferry-files", "mountPath": "/var/run/keyferry", "readOnly": True}


def refusal(body: dict[str, Any], settings: Any = SETTINGS, **known: Any) -> str:
    with pytest.raises(Refused) as refused:
        injection(body, settings, **known)
    return str(refused.value)


class TestSidecar:
    def test_a_pod_that_asks_for_nothing_is_left_alone(self) -> None:
        for given in ({}, {"example.org/inject": "x"}, {"keyferry.dev/touched": "a.1"}, asking_without_inject()):
            found = injection(pod(given))
            assert found.operations == ()
            assert found.identities == ()

    def test_the_sidecar_is_what_the_broker_and_the_node_need(self) -> None:
        body = injected(pod(asking(minimum_remaining="90m", port="7600", inject="nightly, other")))
        sidecar = container(body, "keyferry")
        assert sidecar["image"] == "keyferry/keyferry:1"
        assert sidecar["restartPolicy"] == "Always"
        assert sidecar["resources"] == SETTINGS.resources
        broker = "/var/run/secrets/kubernetes.io/serviceaccount"
        assert sidecar["args"] == [
            "sidecar",
            "--broker=https://kf-keyferry-broker.keyferry.svc:8443",
            f"--ca={broker}/ca.crt",
            f"--token={broker}/token",
            "--namespace=batch",
            "--dir=/var/run/keyferry",
            "--port=7600",
            "--clients=bearer",
            "--minimum-remaining=1h30m",
            "nightly",
            "other",
        ]
        assert sidecar["readinessProbe"]["exec"]["command"] == [
            "keyferry",
            "sidecar",
            "--check",
            "--dir",
            "/var/run/keyferry",
        ]
        gate, ready = (sidecar[f"{name}Probe"] for name in ("startup", "readiness"))
        assert gate["exec"]["command"] == [*ready["exec"]["command"], "--wait", "50"]
        assert gate["timeoutSeconds"] == 60
        assert "livenessProbe" not in sidecar, "files stay good without it, so nothing is won by killing it"
        assert mounts(body, "keyferry") == {
            "/var/run/keyferry": {"name": "keyferry-files", "mountPath": "/var/run/keyferry"},
            broker: {"name": "keyferry-broker", "mountPath": broker, "readOnly": True},
        }

    def test_its_volumes_are_memory_and_a_token_for_the_broker_alone(self) -> None:
        body = injected(pod())
        assert volumes(body)["keyferry-files"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Mi"}
        token, authorities = volumes(body)["keyferry-broker"]["projected"]["sources"]
        assert token["serviceAccountToken"]["audience"] == "keyferry"
        assert 600 <= token["serviceAccountToken"]["expirationSeconds"] <= 3600
        assert authorities["configMap"] == {"name": "keyferry-ca", "items": [{"key": "ca.crt", "path": "ca.crt"}]}
        assert {name for name in mounts(body) if "secrets" in name} == set(), "nobody else sees that token"

    def test_no_authorities_where_everybody_knows_them(self) -> None:
        known = dataclasses.replace(SETTINGS, authorities=False)
        assert len(volumes(injected(pod(), known))["keyferry-broker"]["projected"]["sources"]) == 1
        assert not [each for each in container(injected(pod(), known), "keyferry")["args"] if each.startswith("--ca")]

    def test_containers_find_the_files_and_cannot_change_them(self) -> None:
        body = injected(pod(initContainers=[{"name": "first"}]))
        for name in ("first", "app"):
            assert mounts(body, name) == {"/var/run/keyferry": FILES}
            assert variables(body, name) == {
                "KEYFERRY_DIR": "/var/run/keyferry",
                "BEARER_TOKEN_FILE": "/var/run/keyferry/nightly/token",
            }
        assert body["metadata"]["annotations"]["keyferry.dev/injected"] == "first,app"

    def test_the_first_identity_is_the_bearers(self) -> None:
        known = {"a": spec("Json"), "b": spec("Json", "Token")}
        assert "BEARER_TOKEN_FILE" not in variables(injected(pod(asking(inject="a,b")), **known))
        found = variables(injected(pod(asking(inject="b,a")), **known))
        assert found["BEARER_TOKEN_FILE"] == "/var/run/keyferry/b/token"
        assert "a, the first that keyferry.dev/inject names" in refusal(
            pod(asking(inject="a,b", clients="bearer")), **known
        )

    def test_what_a_container_sets_itself_stays(self) -> None:
        own = [{"name": "BEARER_TOKEN_FILE", "value": "/mine"}, {"name": "HOME", "value": "/root"}]
        body = injected(pod(asking(home="/home/app"), containers=[{"name": "app", "env": own}]))
        assert container(body)["env"] == [{"name": "KEYFERRY_DIR", "value": "/var/run/keyferry"}, *own]

    @pytest.mark.parametrize(
        ("user", "configured", "runs_as"),
        [(None, 65532, 65532), (0, 65532, 65532), (1000, 65532, 1000), (0, None, None)],
    )
    def test_it_is_never_root(self, user: int | None, configured: int | None, runs_as: int | None) -> None:
        given = {} if user is None else {"runAsUser": user}
        body = injected(pod(securityContext=given), dataclasses.replace(SETTINGS, user=configured))
        found = container(body, "keyferry")["securityContext"]
        assert found.pop("runAsUser", None) == runs_as
        assert found == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "seccompProfile": {"type": "RuntimeDefault"},
        }

    def test_the_installations_minimum_counts_where_the_pod_names_none(self) -> None:
        settings = dataclasses.replace(SETTINGS, minimum_remaining="10m")
        assert "--minimum-remaining=10m" in container(injected(pod(), settings), "keyferry")["args"]
        body = pod(asking(minimum_remaining="2h"))
        assert "--minimum-remaining=2h" in container(injected(body, settings), "keyferry")["args"]
        assert not [each for each in container(injected(pod()), "keyferry")["args"] if "minimum" in each]


class TestPlaces:
    def order(self, body: dict[str, Any]) -> list[str]:
        return [each["name"] for each in injected(body)["spec"]["initContainers"]]

    def test_after_native_sidecars_and_before_ordinary_init_containers(self) -> None:
        native = {"name": "mesh", "restartPolicy": "Always"}
        assert self.order(pod(initContainers=[native, {"name": "migrate"}])) == ["mesh", "keyferry", "migrate"]
        assert self.order(pod(initContainers=[{"name": "migrate"}, native])) == ["keyferry", "migrate", "mesh"]
        assert self.order(pod(initContainers=[native])) == ["mesh", "keyferry"]
        assert self.order(pod()) == ["keyferry"]

    def test_after_what_a_mesh_prepares(self) -> None:
        found = [{"name": "istio-init"}, {"name": "istio-proxy", "restartPolicy": "Always"}, {"name": "migrate"}]
        assert self.order(pod(initContainers=found)) == ["istio-init", "istio-proxy", "keyferry", "migrate"]

    def test_before_a_native_sidecar_that_is_to_have_the_files(self) -> None:
        found = [{"name": "mesh", "restartPolicy": "Always"}, {"name": "logs", "restartPolicy": "Always"}]
        body = pod(asking(containers="logs"), initContainers=found)
        assert self.order(body) == ["mesh", "keyferry", "logs"]
        after = injected(body)
        assert mounts(after, "logs") == {"/var/run/keyferry": FILES}
        assert not mounts(after, "mesh")
        assert not mounts(after)

    def test_what_starts_before_it_or_is_anothers_gets_nothing(self) -> None:
        body = pod(
            initContainers=[{"name": "mesh", "restartPolicy": "Always"}],
            containers=[{"name": "app"}, {"name": "linkerd-proxy"}],
        )
        after = injected(body)
        assert mounts(after, "app")
        for name in ("mesh", "linkerd-proxy"):
            assert container(after, name) in [*body["spec"]["initContainers"], *body["spec"]["containers"]]

    def test_a_container_that_was_injected_between_two_looks_gets_nothing(self) -> None:
        after = injected(pod())
        after["spec"]["containers"].append({"name": "late"})
        after["spec"]["initContainers"].insert(0, {"name": "mesh", "restartPolicy": "Always"})
        assert injection(after).operations == ()

    def test_it_moves_behind_a_native_sidecar_that_came_later(self) -> None:
        after = injected(pod())
        after["spec"]["initContainers"].append({"name": "mesh", "restartPolicy": "Always"})
        again = injected(after)
        assert [each["name"] for each in again["spec"]["initContainers"]] == ["mesh", "keyferry"]
        assert injection(again).operations == ()

    def test_the_api_servers_defaults_are_no_change(self) -> None:
        after = injected(pod())
        sidecar = after["spec"]["initContainers"][0]
        sidecar |= {"terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}
        sidecar["startupProbe"]["successThreshold"] = 1
        sidecar["env"].append({"name": "ADDED", "value": "by a policy"})
        after["spec"]["containers"][0]["volumeMounts"].append({"name": "api", "mountPath": "/var/run/secrets"})
        assert injection(after).operations == ()

    def test_a_copied_pod_gets_what_holds_now(self) -> None:
        after = injected(pod())
        after["spec"]["initContainers"][0]["image"] = "keyferry/keyferry:0"
        again = injected(after)
        assert again == injected(pod())


class TestClients:
    def test_tileds_token_directory_is_writable_and_nothing_else_is(self) -> None:
        body = injected(pod(), nightly=spec("Token", "Tiled"))
        assert variables(body)["TILED_CACHE_DIR"] == "/var/run/keyferry/nightly/.tiled"
        assert mounts(body)["/var/run/keyferry/nightly/.tiled"] == {
            "name": "keyferry-files",
            "mountPath": "/var/run/keyferry/nightly/.tiled",
            "subPath": "nightly/.tiled",
        }
        assert mounts(body)["/var/run/keyferry"] == FILES

    def test_an_api_key_comes_from_a_file_of_the_sidecar(self) -> None:
        body = injected(pod(), nightly=spec("Tiled", key=True))
        assert variables(body)["TILED_API_KEY"] == {
            "fileKeyRef": {
                "volumeName": "keyferry-files",
                "path": "nightly/tiled.env",
                "key": "TILED_API_KEY",
                "optional": False,
            }
        }
        assert "TILED_CACHE_DIR" not in variables(body)
        assert list(mounts(body)) == ["/var/run/keyferry"]

    def test_labarchives_variables_come_together_or_not_at_all(self) -> None:
        known = {"nightly": spec("LabArchives")}
        assert variables(injected(pod(), **known)).keys() == {
            "KEYFERRY_DIR",
            "API_URL",
            "ACCESS_KEYID",
            "ACCESS_PWD",
            "AUTH_EMAIL",
            "AUTH_KEY",
        }
        own = pod(containers=[{"name": "app", "env": [{"name": "API_URL", "value": "https://mine.example.org"}]}])
        assert variables(injected(own, **known)).keys() == {"KEYFERRY_DIR", "API_URL"}

    def test_the_ai_on_demand_client_finds_its_files_at_home(self) -> None:
        body = injected(pod(asking(home="/home/app/")), nightly=spec("AIoD"))
        assert variables(body)["HOME"] == "/home/app"
        assert mounts(body)["/home/app/.aiod"] == {
            "name": "keyferry-files",
            "mountPath": "/home/app/.aiod",
            "subPath": "nightly/.aiod",
            "readOnly": True,
        }
        (told,) = injection(pod(), nightly=spec("AIoD")).warnings
        assert "keyferry.dev/home" in told
        assert "keyferry.dev/home" in refusal(pod(asking(clients="aiod")), nightly=spec("AIoD"))

    def test_only_the_clients_that_are_named(self) -> None:
        known = {"nightly": spec("Token", "Tiled", "LabArchives")}
        found = variables(injected(pod(asking(clients="tiled")), **known))
        assert found.keys() == {"KEYFERRY_DIR", "TILED_CACHE_DIR"}
        assert "--clients=tiled" in container(injected(pod(asking(clients="tiled")), **known), "keyferry")["args"]
        assert "--clients=bearer,tiled,labarchives" in container(injected(pod(), **known), "keyferry")["args"]

    def test_the_endpoint_may_call_what_the_installation_opened(self) -> None:
        opened = dataclasses.replace(SETTINGS, allowed_hosts=("labarchives.example.org:8443",))
        args = container(injected(pod(), opened, nightly=spec("LabArchives")), "keyferry")["args"]
        assert "--allow-host=labarchives.example.org:8443" in args
        args = container(injected(pod(), opened, nightly=spec("Token")), "keyferry")["args"]
        assert not [each for each in args if "allow-host" in each]

    def test_a_missing_identity_is_believed_to_write_what_is_asked_for(self) -> None:
        found = injection(pod(asking(clients="tiled")))
        assert "ServiceIdentity nightly is not there yet" in found.warnings[0]
        body = injected(pod(asking(clients="tiled")))
        assert variables(body)["TILED_CACHE_DIR"] == "/var/run/keyferry/nightly/.tiled"
        assert variables(body)["TILED_API_KEY"]["fileKeyRef"]["optional"] is True
        older = dataclasses.replace(SETTINGS, kubernetes=(1, 34))
        assert "TILED_API_KEY" not in variables(injected(pod(asking(clients="tiled")), older))

    def test_two_identities_cannot_have_the_one_variable(self) -> None:
        known = {"a": spec("Token", "Tiled"), "b": spec("Token", "Tiled", key=True)}
        said = refusal(pod(asking(inject="a,b")), **known)
        assert "a and b" in said
        assert "leave tiled out of keyferry.dev/clients" in said
        body = injected(pod(asking(inject="a,b", clients="bearer")), **known)
        assert "/var/run/keyferry/a/.tiled" in mounts(body), "the directory is still the client's to write in"

    def test_a_client_that_no_identity_serves(self) -> None:
        said = refusal(pod(asking(clients="bearer,labarchives")), nightly=spec("Token"))
        assert said.startswith("keyferry.dev/clients names labarchives, but none of nightly writes files of the format")

    def test_who_is_not_among_the_consumers_is_told_so(self) -> None:
        (told,) = injection(pod(), nightly=spec("Token", consumers=("ingest",))).warnings
        assert "does not name the service account default in spec.consumers" in told
        assert injection(pod(), nightly=spec("Token")).warnings == ()


class TestSecretMode:
    def test_secrets_are_mounted_and_nothing_runs(self) -> None:
        known = {"nightly": spec("Token", "Tiled", key=True, secretName="elsewhere"), "other": spec("Token")}
        body = injected(pod(asking(mode="Secret", inject="nightly,other")), **known)
        assert "initContainers" not in body["spec"]
        found = volumes(body)
        assert found["keyferry-secret-0"]["secret"] == {"secretName": "elsewhere", "defaultMode": 0o444}
        assert found["keyferry-secret-1"]["secret"]["secretName"] == "other"
        assert {path: mount["name"] for path, mount in mounts(body).items()} == {
            "/var/run/keyferry/nightly": "keyferry-secret-0",
            "/var/run/keyferry/other": "keyferry-secret-1",
        }
        assert all(mount["readOnly"] for mount in mounts(body).values())
        assert variables(body) == {
            "KEYFERRY_DIR": "/var/run/keyferry",
            "BEARER_TOKEN_FILE": "/var/run/keyferry/nightly/token",
            "TILED_API_KEY": {"secretKeyRef": {"name": "elsewhere", "key": "TILED_API_KEY", "optional": False}},
        }

    def test_it_needs_no_native_sidecars_and_minds_no_network(self) -> None:
        old = dataclasses.replace(SETTINGS, kubernetes=(1, 28))
        body = injected(pod(asking(mode="Secret"), hostNetwork=True), old, nightly=spec("Token"))
        assert mounts(body).keys() == {"/var/run/keyferry/nightly"}

    def test_the_ai_on_demand_client(self) -> None:
        body = injected(pod(asking(mode="Secret", home="/home/app")), nightly=spec("AIoD"))
        assert volumes(body)["keyferry-aiod"]["secret"]["items"] == [
            {"key": "config.toml", "path": "config.toml"},
            {"key": "token.toml", "path": "token.toml"},
        ]
        assert mounts(body)["/home/app/.aiod"]["name"] == "keyferry-aiod"

    @pytest.mark.parametrize(
        ("known", "why"),
        [
            (spec("Token", type="None"), "nightly publishes no Secret"),
            (spec("Tiled"), "nightly writes Tiled's token directory"),
            (spec("LabArchives"), "nightly writes LabArchives' files"),
        ],
    )
    def test_what_no_secret_can_hold(self, known: Any, why: str) -> None:
        said = refusal(pod(asking(mode="Secret")), nightly=known)
        assert why in said
        assert said.endswith("use keyferry.dev/mode: Sidecar.")
        assert "keyferry.dev/mode is Secret" in refusal(pod(asking(mode="Secret", clients="labarchives")))


class TestFallback:
    def test_the_sidecar_alone_has_the_secret_and_the_pod_starts_without_it(self) -> None:
        known = {"nightly": spec("Token"), "other.one": spec("Token", "Json", secretName="elsewhere")}
        body = injected(pod(asking(inject="nightly,other.one", fallback="other.one")), **known)
        place = "/var/run/secrets/keyferry.dev/other.one"
        secret = {"secretName": "elsewhere", "defaultMode": 0o444, "optional": True}
        assert volumes(body)["keyferry-fallback-1"] == {"name": "keyferry-fallback-1", "secret": secret}
        mount = {"name": "keyferry-fallback-1", "mountPath": place, "readOnly": True}
        assert mounts(body, "keyferry")[place] == mount
        given = parse(container(body, "keyferry")["args"][1:])
        assert given.fallbacks == {"other.one": Path(place)}
        assert mounts(body) == {"/var/run/keyferry": FILES}

    def test_an_identity_that_is_not_there_yet_has_the_usual_secret(self) -> None:
        body = injected(pod(asking(fallback="nightly")))
        assert volumes(body)["keyferry-fallback-0"]["secret"]["secretName"] == "nightly"

    def test_a_pod_that_does_not_ask_has_none(self) -> None:
        body = injected(pod(), nightly=spec("Token"))
        assert set(volumes(body)) == {"keyferry-files", "keyferry-broker"}
        assert not [each for each in container(body, "keyferry")["args"] if "fallback" in each]

    @pytest.mark.parametrize(
        ("known", "why"),
        [
            (spec("Token", type="None"), "publishes no Secret (spec.target.type is None)"),
            (spec("Token", "Tiled"), "writes Tiled's token directory, which no Secret can hold"),
            (spec("LabArchives"), "writes LabArchives' files, which no Secret can hold"),
            (spec("Token", "AIoD"), "writes AI-on-Demand's files, which are others in a Secret"),
        ],
    )
    def test_what_no_secret_can_stand_in_for(self, known: Any, why: str) -> None:
        said = refusal(pod(asking(fallback="nightly")), nightly=known)
        assert said == f"keyferry.dev/fallback names nightly, which {why}: leave it out there."


class TestRefused:
    @pytest.mark.parametrize(
        ("annotations", "said"),
        [
            ({"inject": " "}, "keyferry.dev/inject is empty"),
            ({"inject": "a,b,a"}, "keyferry.dev/inject names a twice"),
            ({"inject": "Night"}, "keyferry.dev/inject: 'Night' is no name"),
            ({"inject": "../x"}, "keyferry.dev/inject: '../x' is no name"),
            ({"inject": ",".join(f"n{i}" for i in range(17))}, "keyferry.dev/inject names 17 identities"),
            ({"mode": "sidcar"}, "keyferry.dev/mode: 'sidcar' is none of Sidecar, Secret; did you mean Sidecar?"),
            ({"minimum_remaining": "90"}, "keyferry.dev/minimum-remaining must be a duration such as 90s"),
            ({"clients": "bearer,tilde"}, "keyferry.dev/clients: 'tilde' is none of"),
            ({"clients": "bearer,tild"}, "did you mean tiled?"),
            ({"home": "app"}, "keyferry.dev/home must be an absolute path"),
            ({"home": "/a/../b"}, "keyferry.dev/home must be an absolute path"),
            ({"port": "http"}, "keyferry.dev/port must be a port number"),
            ({"port": "80"}, "keyferry.dev/port must be from 1024 to 65535"),
            ({"port": "٧٥٣١"}, "keyferry.dev/port must be a port number"),
            ({"containers": "ap"}, "keyferry.dev/containers names ap, and the pod has no such container: did you mean"),
            ({"containers": "web"}, "the pod has no such container: it has app."),
            ({"client": "tiled"}, "did you mean keyferry.dev/clients?"),
            ({"zone": "a"}, "keyferry.dev/zone is no annotation that Keyferry knows on a pod; it knows"),
            ({"mode": "Secret", "port": "7531"}, "keyferry.dev/port is the sidecar's, and keyferry.dev/mode is Secret"),
            ({"mode": "Secret", "minimum_remaining": "1h"}, "keyferry.dev/minimum-remaining is the sidecar's"),
            ({"mode": "Secret", "fallback": "nightly"}, "keyferry.dev/fallback is the sidecar's"),
            ({"fallback": "other"}, "keyferry.dev/fallback names other, which keyferry.dev/inject does not"),
            ({"fallback": "true"}, "keyferry.dev/fallback names true, which keyferry.dev/inject does not"),
            ({"fallback": ""}, "keyferry.dev/fallback is empty"),
            ({"falback": "nightly"}, "did you mean keyferry.dev/fallback?"),
        ],
    )  # fmt: skip
    def test_an_annotation_that_cannot_be(self, annotations: dict[str, str], said: str) -> None:
        found = refusal(pod(asking(**annotations)))
        assert said in found
        assert "\n" not in found

    def test_a_mistyped_inject_alone_is_noticed(self) -> None:
        said = refusal(pod({"keyferry.dev/injekt": "nightly"}))
        assert said.endswith("did you mean keyferry.dev/inject?")

    def test_the_nodes_network(self) -> None:
        body = pod(asking(port="7600"), hostNetwork=True)
        assert "sidecar.hostNetwork" in refusal(body)
        allowed = dataclasses.replace(SETTINGS, host_network=True)
        assert "--port=7600" in container(injected(body, allowed), "keyferry")["args"]
        assert refusal(pod(hostNetwork=True), allowed).startswith("keyferry.dev/port is missing")

    def test_a_port_that_is_taken(self) -> None:
        said = refusal(pod(containers=[{"name": "app", "ports": [{"containerPort": 7531}]}]))
        assert said.startswith("keyferry.dev/port: the container app has the port 7531 itself")

    @pytest.mark.parametrize("path", ["/var/run/keyferry", "/var/run/keyferry/", "//var/run/keyferry/x"])
    def test_a_place_that_is_taken(self, path: str) -> None:
        body = pod(containers=[{"name": "app", "volumeMounts": [{"name": "mine", "mountPath": path}]}])
        assert "the container app mounts something of its own at /var/run/keyferry" in refusal(body)

    def test_names_that_are_taken(self) -> None:
        assert "a container named keyferry" in refusal(pod(containers=[{"name": "keyferry"}]))
        assert "one named keyferry-files" in refusal(pod(volumes=[{"name": "keyferry-files", "emptyDir": {}}]))

    def test_clusters_that_are_too_old_say_so(self) -> None:
        before = dataclasses.replace(SETTINGS, kubernetes=(1, 28))
        assert "native sidecars, which Kubernetes has from 1.29 on, and this is 1.28" in refusal(pod(), before)
        before = dataclasses.replace(SETTINGS, kubernetes=(1, 34))
        said = refusal(pod(), before, nightly=spec("Tiled", key=True))
        assert "from 1.35 on, and this is 1.34" in said
        assert "set keyferry.dev/mode: Secret" in said
        said = refusal(pod(asking(clients="labarchives")), before, nightly=spec("LabArchives"))
        assert said.startswith("keyferry.dev/clients: the variables of labarchives")
        assert said.endswith("upgrade the cluster, or leave labarchives out of keyferry.dev/clients.")

    def test_windows(self) -> None:
        for more in ({"nodeSelector": {"kubernetes.io/os": "windows"}}, {"os": {"name": "windows"}}):
            assert "for Windows" in refusal(pod(**more))

    def test_a_static_pod_cannot_be_changed(self) -> None:
        found = injection(pod(asking() | {"kubernetes.io/config.mirror": "x"}))
        assert found.operations == ()
        assert "static pods" in found.warnings[0]


def asking_without_inject() -> dict[str, str]:
    """Somebody took the one annotation away and left the others: that is how injection is switched off."""
    return {name: value for name, value in asking(mode="Secret", port="7600").items() if not name.endswith("inject")}
