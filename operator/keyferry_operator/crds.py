"""The CustomResourceDefinitions, made from the models: ``python -m keyferry_operator.crds --write DIR``.

``--write`` writes them as templates of the Helm chart, ``--check`` compares, and without either they are printed as
plain manifests, for a cluster without Helm.
"""

from __future__ import annotations

import argparse
import functools
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import yaml

from keyferry.spec.identity import ProviderKind, ServiceIdentitySpec
from keyferry.spec.loaded import API_VERSION, GROUP, IDENTITY_KIND
from keyferry.spec.provider import ClusterTokenProviderSpec, TokenProviderSpec
from keyferry_operator.crd_rules import IDENTITY_NAME_RULE, Rule
from keyferry_operator.crd_schema import Schema, spec_schema
from keyferry_operator.crd_status import IDENTITY_COLUMNS, IDENTITY_STATUS, PROVIDER_COLUMNS, PROVIDER_STATUS, Column

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from keyferry.spec.common import Model

VERSION: Final = API_VERSION.rpartition("/")[2]
CATEGORY: Final = "keyferry"
LABELS: Final[Mapping[str, str]] = {"app.kubernetes.io/part-of": "keyferry"}

_HEADER: Final = """\
{{- /* Made from the models by `make crds`; edit those, not this file. */ -}}
{{- if .Values.crds.enabled }}
"""
_FOOTER: Final = "{{- end }}\n"
_KEEP: Final = """\
  {{- if .Values.crds.keep }}
  annotations:
    helm.sh/resource-policy: keep
  {{- end }}
"""
_METADATA: Final = "metadata:\n"
_WIDTH: Final = 120


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of resource."""

    name: str
    model: type[Model]
    description: str
    status: Schema
    columns: Sequence[Column]
    namespaced: bool = True
    short_names: tuple[str, ...] = ()
    rules: tuple[Rule, ...] = ()

    @property
    def plural(self) -> str:
        """The name in the API's paths."""
        name = self.name.lower()
        return f"{name[:-1]}ies" if name.endswith("y") else f"{name}s"

    @property
    def full_name(self) -> str:
        """The name of the CustomResourceDefinition."""
        return f"{self.plural}.{GROUP}"


KINDS: Final = (
    Kind(
        IDENTITY_KIND,
        ServiceIdentitySpec,
        "A ServiceIdentity says who a workload is, and where its token is put. Keyferry obtains the token, renews it "
        "before it expires, and publishes it as files of a Secret.",
        IDENTITY_STATUS,
        IDENTITY_COLUMNS,
        short_names=("si",),
        rules=(IDENTITY_NAME_RULE,),
    ),
    Kind(
        ProviderKind.TOKEN_PROVIDER,
        TokenProviderSpec,
        "A TokenProvider says where the tokens of its namespace's identities come from.",
        PROVIDER_STATUS,
        PROVIDER_COLUMNS,
    ),
    Kind(
        ProviderKind.CLUSTER_TOKEN_PROVIDER,
        ClusterTokenProviderSpec,
        "A ClusterTokenProvider is a TokenProvider for the identities of selected namespaces. Its references resolve "
        "in the operator's namespace.",
        PROVIDER_STATUS,
        PROVIDER_COLUMNS,
        namespaced=False,
    ),
)


def manifests() -> list[dict[str, Any]]:
    """Return the CustomResourceDefinitions, ready to be applied."""
    return [_manifest(kind) for kind in KINDS]


@functools.cache
def templates() -> Mapping[str, str]:
    """Return the Helm templates of the CustomResourceDefinitions by their file names."""
    return {f"{kind.plural}.yaml": _template(_manifest(kind)) for kind in KINDS}


def differing(directory: Path) -> list[str]:
    """Return which files of a directory differ from what would be written, are missing, or should not be there."""
    wanted = templates()
    found = {path.name: path.read_text("utf-8") for path in directory.glob("*.yaml")}
    return sorted(name for name in wanted.keys() | found.keys() if wanted.get(name) != found.get(name))


def main(arguments: Sequence[str] | None = None) -> int:
    """Write, check or print; return the exit code (1: the files have drifted)."""
    parser = argparse.ArgumentParser(
        prog="python -m keyferry_operator.crds", description="Make the CRDs from the models."
    )
    action = parser.add_mutually_exclusive_group()
    action.add_argument("--write", metavar="DIR", type=Path, help="write the chart's templates")
    action.add_argument(
        "--check", metavar="DIR", type=Path, help="exit with 1 where the chart's templates have drifted"
    )
    options = parser.parse_args(arguments)
    if options.write is not None:
        _write(options.write)
    elif options.check is not None:
        return _check(options.check)
    else:
        sys.stdout.write(yaml.safe_dump_all(manifests(), sort_keys=False, allow_unicode=True, width=_WIDTH))
    return 0


def _write(directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    wanted = templates()
    for path in directory.glob("*.yaml"):
        if path.name not in wanted:
            path.unlink()
    for name, text in wanted.items():
        (directory / name).write_text(text, "utf-8")


def _check(directory: Path) -> int:
    names = differing(directory)
    for name in names:
        sys.stderr.write(f"{directory / name}: is not what the models say; run `make crds`\n")
    return 1 if names else 0


def _manifest(kind: Kind) -> dict[str, Any]:
    names: dict[str, Any] = {
        "kind": str(kind.name),
        "listKind": f"{kind.name}List",
        "plural": kind.plural,
        "singular": kind.name.lower(),
        "categories": [CATEGORY],
    }
    if kind.short_names:
        names["shortNames"] = list(kind.short_names)
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": kind.full_name, "labels": dict(LABELS)},
        "spec": {
            "group": GROUP,
            "scope": "Namespaced" if kind.namespaced else "Cluster",
            "names": names,
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "additionalPrinterColumns": list(kind.columns),
                    "subresources": {"status": {}},
                    "schema": {"openAPIV3Schema": _root_schema(kind)},
                }
            ],
        },
    }


def _root_schema(kind: Kind) -> Schema:
    schema: Schema = {
        "type": "object",
        "description": kind.description,
        "required": ["spec"],
        "properties": {
            "apiVersion": {"description": f"Always {API_VERSION}.", "type": "string"},
            "kind": {"description": f"Always {kind.name}.", "type": "string"},
            "metadata": {"type": "object"},
            "spec": spec_schema(kind.model),
            "status": kind.status,
        },
    }
    if kind.rules:
        schema["x-kubernetes-validations"] = [rule.as_json() for rule in kind.rules]
    return schema


class _Dumper(yaml.SafeDumper):
    """Writes every occurrence of a shared part out: anchors are no help to people."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002 - the signature is PyYAML's
        return True


def _template(manifest: dict[str, Any]) -> str:
    """Return a manifest as a Helm template."""
    text = yaml.dump(manifest, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=_WIDTH)
    # What looks like an action of the template engine is text here. A closing `}}` alone means nothing to it.
    text = text.replace("{{", '{{ "{{" }}')
    before, metadata, after = text.partition(_METADATA)
    return f"{_HEADER}{before}{metadata}{_KEEP}{after}{_FOOTER}"


if __name__ == "__main__":
    sys.exit(main())
