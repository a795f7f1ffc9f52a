"""Resources that the tests start from, written as people write them."""

from __future__ import annotations

from typing import Any

import yaml

from keyferry.spec.resources import Loaded, load_documents

REF = {"secretKeyRef": {"name": "bot", "key": "client_secret"}}
CLIENT = {"id": "bot", "secretsFrom": [REF]}
ISSUER = "https://auth.example.org/realms/a"


def resource(kind: str, spec: Any, *, name: str = "x", namespace: str | None = "batch") -> dict[str, Any]:
    metadata = {"name": name} | ({"namespace": namespace} if namespace is not None else {})
    return {"apiVersion": "keyferry.dev/v1alpha1", "kind": kind, "metadata": metadata, "spec": spec}


def identity(**spec: Any) -> dict[str, Any]:
    return resource("ServiceIdentity", {"providerRef": {"name": "p"}, "grant": {"type": "ClientCredentials"}} | spec)


def provider(**spec: Any) -> dict[str, Any]:
    return resource("TokenProvider", {"type": "OAuth", "oauth": {"issuer": ISSUER, "client": CLIENT}} | spec)


def oauth(**fields: Any) -> dict[str, Any]:
    return provider(oauth={"issuer": ISSUER, "client": CLIENT} | fields)


def client(**fields: Any) -> dict[str, Any]:
    return oauth(client={"id": "bot"} | fields)


def cluster_provider(**spec: Any) -> dict[str, Any]:
    merged = {"type": "OAuth", "oauth": {"issuer": ISSUER, "client": CLIENT}} | spec
    return resource("ClusterTokenProvider", merged, name="shared", namespace=None)


def load(*resources: Any) -> Loaded:
    return load_documents(yaml.safe_dump_all(resources).encode(), "f.yaml")


CONTRACT = b"""\
apiVersion: keyferry.dev/v1alpha1
kind: TokenProvider
metadata: {name: aiod, namespace: batch}
spec:
  type: OAuth
  oauth:
    issuer: https://auth.example.org/realms/aiod
    endpoints:
      token: https://auth.example.org/token
      deviceAuthorization: https://auth.example.org/device
      authorization: https://auth.example.org/auth?prompt=none
      revocation: https://auth.example.org/revoke
      introspection: https://auth.example.org/introspect
      pushedAuthorizationRequest: https://auth.example.org/par
    client:
      id: nightly-bot
      authentication: ClientSecretBasic
      secretsFrom: [{secretKeyRef: {name: bot, key: client_secret}}]
    refreshTokens: {rotation: Auto, reuseWindow: 0s, inDoubt: ReplayOnce, idle: 30m, maximum: 10h}
    lifetime: {assumed: 5m, maximum: 24h}
  tls:
    caFrom: {configMapKeyRef: {name: ca, key: ca.crt}}
    clientCertificateFrom: {secretRef: {name: tls}}
  limits: {requestsPerSecond: 10, burst: 20, concurrency: 8, timeout: 10s}
---
apiVersion: keyferry.dev/v1alpha1
kind: ClusterTokenProvider
metadata: {name: shared}
spec:
  type: Tiled
  tiled: {url: "https://tiled.example.org/api/v1", authenticator: toy}
  namespaceSelector: {}
  allow: {grants: [Password], scopes: [a], audiences: [b], resources: ["https://c/"], parameters: [acr_values]}
---
apiVersion: keyferry.dev/v1alpha1
kind: ServiceIdentity
metadata:
  name: nightly-ingest
  namespace: batch
  uid: u-1
  generation: 3
  annotations: {keyferry.dev/renew: now, other: x}
spec:
  providerRef: {kind: TokenProvider, name: aiod}
  grant:
    type: TokenExchange
    tokenExchange:
      subject: {serviceAccountToken: {name: sa, audience: aiod, expiration: 1h}}
      subjectTokenType: urn:ietf:params:oauth:token-type:jwt
      actor: {identityRef: {name: other}}
  client:
    authentication: ClientAssertion
    assertionFrom: {serviceAccountToken: {name: sa, audience: aiod}}
  scopes: [openid]
  audiences: [api]
  resources: [https://api.example.org/]
  parameters: {acr_values: "2"}
  expectedSubject: {subject: abc}
  renewal: {before: 10m, minimumRemaining: 5m}
  suspend: false
  target:
    type: Secret
    secretName: nightly-ingest-token
    labels: {team: a}
    annotations: {note: some text}
    files:
    - {format: Token, name: token}
    - {format: Json, name: token.json}
    - {format: Env, name: token.env, variables: {BEARER_TOKEN: "${access_token}"}}
    - {format: Template, name: app.ini, template: "[auth]\\ntoken = ${access_token}\\n"}
    touchPods: false
  consumers: [{serviceAccountName: ingest}, {identityName: other}]
  deletionPolicy: Revoke
status: {anything: at all}
"""
