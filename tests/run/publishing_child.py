"""Publishes until it is killed: ``python -m tests.run.publishing_child`` is what the crash tests start.

``random OUT KILLS SEED``: that many children, one after the other, each killed after a random moment.
``steps OUT FIRST``: one child after the other; the n-th is killed before its n-th change of the file system, until one
gets through. Prints how many were killed. With FIRST ``1`` each publishes to a new identity, with ``0`` anew to one.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time
from pathlib import Path

from keyferry.model import ObjectKey
from keyferry.publication import Publication
from keyferry.run.publisher import FilePublisher

KEY = ObjectKey("crash", "loop")
SIGNING_KEY = b"k" * 32
NESTED = ".tiled/tokens/https%3A%2F%2Fexample.org%2Fapi%2Fv1%2F/access_token"
CHANGES = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir")


def content(revision: int) -> bytes:
    """Large enough to be written in several pages, and equal throughout."""
    return b"%012d\n" % revision * 2000


def publication(key: ObjectKey, revision: int) -> Publication:
    """Two files always, and one that comes and goes."""
    names = ["token", NESTED] + (["sometimes"] if revision % 2 else [])
    return Publication(
        key=key,
        uid="uid-1",
        revision=revision,
        generation=1,
        issued_at=float(revision),
        expires_at=revision + 60.0,
        spec_hash="s",
        files_hash=str(revision),
        files=dict.fromkeys(names, content(revision)),
    )


def kill_at_random(out: Path, kills: int, seed: int) -> None:
    dice = random.Random(seed)  # noqa: S311 - not for secrets
    for number in range(kills):
        readable, writable = os.pipe()
        child = os.fork()
        if not child:
            publish_on_and_on(out, writable)
        os.close(writable)
        if number % 2:
            # However slow the machine, this child has got through one whole publication.
            os.read(readable, 1)
        time.sleep(dice.uniform(0.001, 0.03))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        os.close(readable)


def publish_on_and_on(out: Path, writable: int) -> None:
    publisher = FilePublisher(out, key=SIGNING_KEY)
    published = publisher.observe(KEY)
    revision = published.revision if published else 0
    while True:
        revision += 1
        publisher.publish(publication(KEY, revision))
        os.write(writable, b".")


def kill_at_each_step(out: Path, *, first: bool) -> int:
    step = 0
    while True:
        step += 1
        child = os.fork()
        if not child:
            publish_and_die(out, ObjectKey("crash", f"first-{step}") if first else KEY, step, step)
        status = os.waitpid(child, 0)[1]
        if status == 0:
            return step - 1
        if not os.WIFSIGNALED(status):
            raise SystemExit("the child failed: its own words are above")


def publish_and_die(out: Path, key: ObjectKey, revision: int, step: int) -> None:
    changes = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal changes
        if event in CHANGES and (event != "open" or int(str(arguments[2])) & os.O_CREAT):
            changes += 1
            if changes == step:
                os.kill(os.getpid(), signal.SIGKILL)

    publisher = FilePublisher(out, key=SIGNING_KEY)
    sys.addaudithook(hook)
    publisher.publish(publication(key, revision))
    os._exit(0)


if __name__ == "__main__":
    mode, directory, number, *rest = sys.argv[1:]
    if mode == "random":
        kill_at_random(Path(directory), int(number), int(rest[0]))
    else:
        sys.stdout.write(f"{kill_at_each_step(Path(directory), first=number == '1')}\n")
