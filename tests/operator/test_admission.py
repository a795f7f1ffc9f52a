import pytest

from keyferry.model import ObjectKey
from keyferry.spec.resources import load_object
from keyferry_operator.operator import admits


@pytest.mark.parametrize(
    ("kind", "selector", "words"),
    [
        ("TokenProvider", None, ""),
        ("ClusterTokenProvider", None, "has no namespaceSelector"),
        ("ClusterTokenProvider", {}, ""),
        ("ClusterTokenProvider", {"matchLabels": {"team": "a"}}, "selects namespaces by label"),
    ],
)
def test_a_cluster_provider_is_offered_to_no_namespace_unless_it_says_so(
    kind: str, selector: dict[str, object] | None, words: str
) -> None:
    spec: dict[str, object] = {
        "type": "OAuth",
        "oauth": {"issuer": "https://auth.example.org", "client": {"id": "bot", "authentication": "None"}},
    }
    if selector is not None:
        spec["namespaceSelector"] = selector
    document = {"apiVersion": "keyferry.dev/v1alpha1", "kind": kind, "metadata": {"name": "issuer"}, "spec": spec}
    loaded = load_object(document, default_namespace="batch")
    assert not loaded.problems
    provider = loaded.providers[0]
    assert provider.key in (ObjectKey("batch", "issuer"), ObjectKey("keyferry", "issuer"))
    said = admits("batch", provider)
    assert words in said
    assert bool(said) == bool(words)
