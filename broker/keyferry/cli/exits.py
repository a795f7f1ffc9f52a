"""The exit codes of all commands, and how a command ends with one."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING, Final

from keyferry.run.requests import Outcome

if TYPE_CHECKING:
    from keyferry.run.requests import Answer


class ExitCode(enum.IntEnum):
    """What a shell sees. ``exec`` passes its command's own code on; 128 + n tells of signal n."""

    DONE = 0
    FAILED = 1
    INVALID = 2
    """The resources, or the command line, are wrong."""
    PERSON = 3
    """Only a person helps: a new seed, a login, an approval."""
    HELD = 4
    """Another keyferry holds the state directory, and cannot be asked."""
    NOT_EXECUTABLE = 126
    NOT_FOUND = 127


OF_OUTCOME: Final = {
    Outcome.DONE: ExitCode.DONE,
    Outcome.FAILED: ExitCode.FAILED,
    Outcome.TOO_SOON: ExitCode.FAILED,
    Outcome.PERSON: ExitCode.PERSON,
    Outcome.UNKNOWN: ExitCode.INVALID,
}

EXIT_HELP: Final = (
    "Exit codes: 0 done · 1 failed · 2 wrong resources or usage · 3 a person is needed · 4 the state is held by another"
    " keyferry that does not answer · 128 + n ended by signal n"
)


class CommandError(Exception):
    """A command cannot go on: its message goes to stderr, its code to the shell."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        super().__init__(message)
        self.message = message
        self.code = code

    @classmethod
    def of(cls, answer: Answer) -> CommandError:
        """Return what to say of an answer that is not the one that was asked for."""
        return cls(answer.message, OF_OUTCOME[answer.outcome])
