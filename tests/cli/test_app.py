from __future__ import annotations

import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from keyferry import __version__
from keyferry.cli.app import COMMANDS

if TYPE_CHECKING:
    from tests.cli.conftest import Inside
    from tests.cli.workshop import Workshop

PLUGIN = """\
import typer
app = typer.Typer()

@app.command()
def extra(word: str) -> None:
    typer.echo(f"extra {word}")
"""


def test_the_help_names_the_commands_and_the_exit_codes(inside: Inside) -> None:
    code, out, _ = inside("--help")
    assert code == 0
    for name in COMMANDS:
        assert f" {name} " in out
        own_code, own, _ = inside(name, "--help")
        assert own_code == 0
        assert "Usage: keyferry" in own
    assert "Exit codes" in out
    assert "operator" not in out
    assert inside("--version") == (0, f"keyferry {__version__}\n", "")


def test_an_unknown_command_is_a_mistake(inside: Inside) -> None:
    code, out, err = inside("nonsense")
    assert (code, out) == (2, "")
    assert "nonsense" in err


def test_another_distribution_can_add_a_command(workshop: Workshop) -> None:
    site = workshop.base / "site"
    information = site / "plugin-1.dist-info"
    information.mkdir(parents=True)
    (site / "keyferry_plugin.py").write_text(PLUGIN)
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: plugin\nVersion: 1\n")
    (information / "entry_points.txt").write_text("[keyferry.commands]\nextra = keyferry_plugin:app\n")
    done = workshop.call("extra", "word", PYTHONPATH=str(site))
    assert (done.returncode, done.stdout) == (0, "extra word\n"), done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_scripts_are_printed(inside: Inside, shell: str) -> None:
    code, script, _ = inside("completion", shell)
    assert code == 0
    assert "_KEYFERRY_COMPLETE" in script
    program = shutil.which(shell)
    if program is not None:
        subprocess.run([program, "-n"], input=script, text=True, check=True, capture_output=True)


def test_another_shell_is_a_mistake(inside: Inside) -> None:
    code, out, err = inside("completion", "csh")
    assert (code, out) == (2, "")
    assert "fish" in err


@pytest.mark.parametrize(
    ("words", "expected"),
    [("keyferry sta", ["status"]), ("keyferry token t", ["two"]), ("keyferry exec one ", ["one", "two"])],
)
def test_commands_and_names_complete(workshop: Workshop, words: str, expected: list[str]) -> None:
    for name in ("one", "two"):
        path = workshop.state / "records" / "default" / f"{name}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    position = str(len(words.split(" ")) - 1)
    done = workshop.call(_KEYFERRY_COMPLETE="complete_bash", COMP_WORDS=words, COMP_CWORD=position)
    assert done.stdout.split() == expected


def test_the_demo_ends_by_itself_off_a_terminal(workshop: Workshop) -> None:
    done = workshop.call("demo", "--lifetime", "4s")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout


def test_tokens_that_live_too_short_to_be_renewed_are_no_demo(inside: Inside) -> None:
    code, out, err = inside("demo", "--lifetime", "1s")
    assert (code, out) == (2, "")
    assert "--lifetime" in err
