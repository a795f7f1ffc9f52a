"""The options that the commands share, and the connection that comes of them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.cli.options import with_options
from keyferry.errors import KeyferryError

if TYPE_CHECKING:
    from keyferry_operator.kubectl.access import Access
    from keyferry_operator.kubectl.api import Api

_CLUSTER = "Cluster"
"""The part of the help with the options that kubectl has as well."""


def names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of identities from the cluster; whatever is wrong, there are just none."""
    given = ctx.params
    try:
        where = access(given.get("kubeconfig"), given.get("context"), given.get("as_user"), given.get("as_group"))
        from keyferry_operator.client import IDENTITIES  # noqa: PLC0415 - slow to import

        with connect(where) as api:
            found = api.items(IDENTITIES, given.get("namespace") or where.namespace)[1]
    except (CommandError, KeyferryError, OSError):
        return []
    return sorted(str(item["metadata"]["name"]) for item in found if item["metadata"]["name"].startswith(incomplete))


Names = Annotated[
    list[str], typer.Argument(metavar="NAME", help="Identities.", autocompletion=names, show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The identity.", autocompletion=names, show_default=False)]
SomeNames = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="NAME", help="Identities; without any, all of them.", autocompletion=names, show_default=False
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option("--namespace", "-n", help="Default: the context's.", rich_help_panel=_CLUSTER, show_default=False),
]
AllNamespaces = Annotated[
    bool, typer.Option("--all-namespaces", "-A", help="Those of every namespace.", rich_help_panel=_CLUSTER)
]
Kubeconfig = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Default: those in KUBECONFIG, else ~/.kube/config.",
        rich_help_panel=_CLUSTER,
        show_default=False,
    ),
]
Context = Annotated[
    str | None,
    typer.Option(metavar="NAME", help="Context of the kubeconfig.", rich_help_panel=_CLUSTER, show_default=False),
]
AsUser = Annotated[
    str | None,
    typer.Option(
        "--as", metavar="USER", help="Act as somebody else, if you may.", rich_help_panel=_CLUSTER, show_default=False
    ),
]
AsGroup = Annotated[
    list[str] | None,
    typer.Option(
        "--as-group", metavar="GROUP", help="And as of this group.", rich_help_panel=_CLUSTER, show_default=False
    ),
]
OperatorNamespace = Annotated[
    str,
    typer.Option(
        metavar="NAMESPACE",
        envvar="KEYFERRY_OPERATOR_NAMESPACE",
        help="The operator's own, where its Lease is.",
        rich_help_panel=_CLUSTER,
    ),
]
DEFAULT_HOME = "keyferry"


@dataclass(frozen=True)
class Place:
    """Which cluster is meant, whose rights are used, and where in it."""

    kubeconfig: Path | None
    context: str | None
    as_user: str | None
    as_groups: list[str] | None
    named: str | None
    """The namespace, where one was given."""
    home: str
    """The operator's own."""

    @functools.cached_property
    def access(self) -> Access:
        """The way into the cluster. Raises CommandError."""
        return access(self.kubeconfig, self.context, self.as_user, self.as_groups)

    @property
    def namespace(self) -> str:
        """The namespace that was given, else the context's. Raises CommandError."""
        return self.named or self.access.namespace

    def connect(self) -> Api:
        """Return the API server, to be used in ``with``. Raises CommandError."""
        return connect(self.access)


def _place(
    *,
    namespace: Namespace = None,
    operator_namespace: OperatorNamespace = DEFAULT_HOME,
    kubeconfig: Kubeconfig = None,
    context: Context = None,
    as_user: AsUser = None,
    as_group: AsGroup = None,
) -> Place:
    return Place(kubeconfig, context, as_user, as_group, namespace, operator_namespace)


with_place: Final = with_options(_place)
"""Lets a command take where in which cluster it works, as its parameter ``given``."""


def access(
    kubeconfig: Path | None, context: str | None, as_user: str | None = None, as_groups: list[str] | None = None
) -> Access:
    """Read the kubeconfig. Raises CommandError."""
    from keyferry_operator.kubectl.access import Person, load  # noqa: PLC0415 - slow to import

    if as_groups and not as_user:
        raise CommandError("--as-group needs --as", ExitCode.INVALID)
    return load(kubeconfig, context, Person(as_user, tuple(as_groups or ())))


def connect(where: Access) -> Api:
    """Return the API server, to be used in ``with``."""
    from keyferry_operator.kubectl.api import Api  # noqa: PLC0415 - slow to import

    return Api(where)
