"""The options that the commands share, and the settings that come of them."""

import inspect
import logging
import os
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

from keyferry.cli.exits import CommandError, ExitCode
from keyferry.engine.status import Level
from keyferry.io.addresses import HostRule
from keyferry.model import ObjectKey
from keyferry.run.last_run import LastRun, merged
from keyferry.run.settings import RunSettings, default_out, default_state
from keyferry.spec.durations import parse_duration


def _names(ctx: typer.Context, incomplete: str) -> list[str]:
    """Complete the names of identities from the state directory."""
    state = ctx.params.get("state") or default_state()
    namespace = ctx.params.get("namespace") or "default"
    return [
        path.stem
        for path in sorted(Path(state, "records", namespace).glob("*.json"))
        if path.stem.startswith(incomplete)
    ]


def _levels(incomplete: str) -> list[str]:
    return [level.value for level in Level if level.startswith(incomplete)]


_BROKER: Final = "Resources and credentials"
"""The part of the help that tells of options which only matter where a command has to be the broker itself."""

Names = Annotated[
    list[str], typer.Argument(metavar="NAME", help="Identities.", autocompletion=_names, show_default=False)
]
Name = Annotated[str, typer.Argument(metavar="NAME", help="The identity.", autocompletion=_names, show_default=False)]
Paths = Annotated[
    list[Path] | None,
    typer.Argument(
        metavar="PATH",
        envvar="KEYFERRY_RESOURCES",
        help="Resource files, or directories of them.",
        show_default=False,
    ),
]
Namespace = Annotated[
    str | None,
    typer.Option(
        "--namespace",
        "-n",
        envvar="KEYFERRY_NAMESPACE",
        help="Namespace of the identities. Default: default.",
        show_default=False,
    ),
]
State = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="KEYFERRY_STATE",
        help="Private state. Default: $XDG_STATE_HOME/keyferry.",
        show_default=False,
    ),
]
Out = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="KEYFERRY_OUT",
        help="Token files. Default: $XDG_RUNTIME_DIR/keyferry.",
        show_default=False,
    ),
]
Resources = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="PATH",
        envvar="KEYFERRY_RESOURCES",
        help="Resource files, for when no broker runs. Default: those of the last run.",
        rich_help_panel=_BROKER,
        show_default=False,
    ),
]
Secrets = Annotated[
    Path | None,
    typer.Option(
        metavar="DIR",
        envvar="KEYFERRY_SECRETS",
        help="Secrets as DIR/<namespace>/<name>/<key>.",
        rich_help_panel=_BROKER,
        show_default=False,
    ),
]
SecretEnv = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME/KEY=VAR",
        help="Take a key of a Secret from an environment variable.",
        rich_help_panel=_BROKER,
        show_default=False,
    ),
]
ServiceAccountTokens = Annotated[
    list[str] | None,
    typer.Option(
        "--service-account-token",
        metavar="AUDIENCE=FILE",
        help="A file that holds a token for that audience, kept fresh by somebody else.",
        rich_help_panel=_BROKER,
        show_default=False,
    ),
]
AllowHosts = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        metavar="HOST[:PORT]",
        envvar="KEYFERRY_ALLOW_HOSTS",
        help="Permit plain HTTP, private and loopback addresses for that host.",
        rich_help_panel=_BROKER,
        show_default=False,
    ),
]
Timeout = Annotated[str, typer.Option(metavar="DURATION", help="How long to wait for tokens.")]
LogLevel = Annotated[
    str | None,
    typer.Option(
        metavar="LEVEL",
        envvar="KEYFERRY_LOG_LEVEL",
        help="debug, info, warning or error.",
        autocompletion=_levels,
        show_default=False,
    ),
]


class Options:
    """The shared options as they were given. Its methods raise CommandError."""

    def __init__(
        self,
        *,
        namespace: str | None = None,
        state: Path | None = None,
        out: Path | None = None,
        resources: Iterable[Path] | None = None,
        secrets: Path | None = None,
        secret_env: Iterable[str] | None = None,
        service_account_tokens: Iterable[str] | None = None,
        allow_hosts: Iterable[str] | None = None,
    ) -> None:
        self.state = (state or default_state()).absolute()
        self._namespace = namespace
        self.given = LastRun(
            resources=tuple(path.absolute() for path in resources or ()),
            out=out.absolute() if out is not None else None,
            secrets=secrets.absolute() if secrets is not None else None,
            secret_env=_secret_env(secret_env or ()),
            service_account_tokens=_token_files(service_account_tokens or ()),
            allowed_hosts=_hosts(allow_hosts or ()),
        )

    def run_settings(self) -> RunSettings:
        """Return the settings of ``run`` itself, for which earlier runs do not count."""
        given = replace(self.given, namespace=self._namespace)
        return merged(given, LastRun(), state=self.state, out=default_out().absolute())

    def settings(self) -> RunSettings:
        """Return the settings of the other commands: what is not given is as in the last run on that state."""
        last = LastRun.read(self.state)
        if last.namespace is None:
            last = replace(last, namespace=self._namespace)
        return merged(self.given, last, state=self.state, out=default_out().absolute())

    def keys(self, names: Iterable[str]) -> list[ObjectKey]:
        """Return the identities that are meant, each once."""
        return [ObjectKey(self._namespace or "default", name) for name in dict.fromkeys(names)]


@dataclass(frozen=True, slots=True)
class Given:
    """What a command was given that needs a broker, in the options that all such commands share."""

    options: Options
    patience: float
    """Seconds to wait for tokens."""
    level: Level
    """From which on messages go to stderr."""


def _given(
    *,
    namespace: Namespace = None,
    state: State = None,
    out: Out = None,
    resources: Resources = None,
    secrets: Secrets = None,
    secret_env: SecretEnv = None,
    service_account_token: ServiceAccountTokens = None,
    allow_host: AllowHosts = None,
    timeout: Timeout = "60s",
    log_level: LogLevel = None,
) -> Given:
    """Read the shared options. Raises CommandError."""
    options = Options(
        namespace=namespace,
        state=state,
        out=out,
        resources=resources,
        secrets=secrets,
        secret_env=secret_env,
        service_account_tokens=service_account_token,
        allow_hosts=allow_host,
    )
    set_up_stderr(log_level)
    return Given(options, duration(timeout, "--timeout"), read_level(log_level, Level.WARNING))


def with_options(gather: Callable[..., Any]) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Return a decorator: a command takes the options of ``gather`` besides its own.

    What that returns of them is the command's parameter ``given``.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        shared = inspect.signature(gather, eval_str=True).parameters
        own = inspect.signature(command, eval_str=True)
        parameters = [*(each for each in own.parameters.values() if each.name != "given"), *shared.values()]

        def taking(**values: Any) -> None:
            given = gather(**{name: values.pop(name) for name in shared})
            command(**values, given=given)

        # Typer makes the command line of these two.
        taking.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
        taking.__annotations__ = {each.name: each.annotation for each in parameters}
        taking.__doc__, taking.__name__ = command.__doc__, command.__name__
        return taking

    return decorate


with_shared_options: Final = with_options(_given)
"""Lets a command take what nearly all of them take."""


def duration(text: str, option: str) -> float:
    """Read a duration option, in seconds."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise CommandError(f"{option} {error}", ExitCode.INVALID) from None


def read_level(text: str | None, default: Level) -> Level:
    """Read ``--log-level``."""
    if not text:
        return default
    try:
        return Level(text.lower())
    except ValueError:
        known = ", ".join(level.value for level in Level)
        raise CommandError(f"--log-level {text!r} is not known; it is one of {known}", ExitCode.INVALID) from None


def set_up_logging(handler: logging.Handler, level: Level) -> None:
    """Send log records to ``handler``: ours from ``level``; libraries' warnings only, for their details show bodies."""
    root = logging.getLogger()
    for other in list(root.handlers):
        root.removeHandler(other)
    root.addHandler(handler)
    root.setLevel(logging.WARNING)
    logging.getLogger("keyferry").setLevel(level.upper())


def set_up_stderr(level: str | None) -> None:
    """Log to stderr, as lines for people: warnings and errors unless ``level`` says otherwise."""
    handler = logging.StreamHandler()
    handler.setFormatter(PlainFormatter("keyferry: %(levelname)s: %(message)s"))
    set_up_logging(handler, read_level(level, Level.WARNING))


class PlainFormatter(logging.Formatter):
    """One line a record. Of an exception only its type: its text may hold anything."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        record.message = record.getMessage()
        text = self.formatMessage(record)
        if record.exc_info is not None and record.exc_info[0] is not None:
            text = f"{text} ({record.exc_info[0].__name__})"
        return text


def address(text: str, option: str) -> tuple[str, int]:
    """Read what ``option`` says to listen on. Raises CommandError."""
    from keyferry.web.serving import parse_address  # noqa: PLC0415 - slow to import

    try:
        return parse_address(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}", ExitCode.INVALID) from None


def page_url(text: str, option: str) -> str:
    """Read the address that people know the approval page by. Raises CommandError."""
    from keyferry.web.page.site import check_url  # noqa: PLC0415 - slow to import

    try:
        return check_url(text)
    except ValueError as error:
        raise CommandError(f"{option}: {error}", ExitCode.INVALID) from None


def complain(message: str) -> None:
    """Write a line to stderr."""
    with_name = f"keyferry: {message}\n"
    try:
        sys.stderr.write(with_name)
        sys.stderr.flush()
    except OSError:
        pass  # nobody listens


def leave(code: int) -> NoReturn:
    """End the command with a code."""
    raise typer.Exit(int(code))


def _secret_env(texts: Iterable[str]) -> Mapping[tuple[str, str], str]:
    found: dict[tuple[str, str], str] = {}
    for text in texts:
        place, equals, variable = text.partition("=")
        name, slash, key = place.partition("/")
        if not (equals and slash and name and key and variable):
            raise CommandError(
                "--secret-env is NAME/KEY=VARIABLE, such as bot/client_secret=BOT_SECRET", ExitCode.INVALID
            )
        found[name, key] = variable
    return found


def _token_files(texts: Iterable[str]) -> Mapping[str, Path]:
    found: dict[str, Path] = {}
    for text in texts:
        audience, equals, path = text.rpartition("=")
        if not (equals and audience and path):
            raise CommandError("--service-account-token is AUDIENCE=FILE", ExitCode.INVALID)
        found[audience] = Path(os.path.expanduser(path)).absolute()  # noqa: PTH111 - `~user` that is unknown stays
    return found


def _hosts(texts: Iterable[str]) -> tuple[HostRule, ...]:
    try:
        return tuple(HostRule.parse(text) for text in texts)
    except ValueError as error:
        raise CommandError(f"--allow-host: {error}", ExitCode.INVALID) from None
