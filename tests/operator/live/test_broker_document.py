"""The broker API is as its OpenAPI document says: asked by a program that reads the document and makes requests up."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from keyferry_operator.api.openapi import document
from tests.operator.live.pods import Pod, limited, prepare, serving

if TYPE_CHECKING:
    from tests.operator.live.conftest import Field
    from tests.operator.live.pods import Site

PUBLISHED = Path(__file__).parents[3] / "docs" / "openapi.yaml"
CONSUMERS = [{"serviceAccountName": "ingest"}]
SEED = "20261122"


def test_the_published_document_is_the_one_that_is_served() -> None:
    written = yaml.safe_load(PUBLISHED.read_text())
    assert written == document(), "run `python -m keyferry_operator.api.openapi > docs/openapi.yaml`"


async def explore(site: Site, directory: Path, *options: str) -> None:
    """Have requests made up from the document, good ones and bad ones, and every answer checked against it."""
    assert site.operator.broker is not None
    authorities = directory / "ca.crt"
    authorities.write_text(site.operator.broker.server.certificates.bundle)
    settings = directory / "schemathesis.toml"
    settings.write_text(f'[parameters]\nnamespace = "{site.field.namespace}"\nname = "nightly"\n')
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "schemathesis.cli",
        f"--config-file={settings}",
        "run",
        f"{site.url}/openapi.json",
        f"--tls-verify={authorities}",
        f"--url={site.url}",
        "--request-timeout=120",
        f"--seed={SEED}",
        "--no-color",
        *options,
        cwd=directory,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        output, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, output.decode(errors="replace")[-6000:]


@pytest.mark.cluster
async def test_every_answer_is_as_the_document_says(field: Field, tmp_path: Path) -> None:
    prepare(field, field.identity("nightly", consumers=CONSUMERS))
    plenty = limited(burst=1e9, signatures_burst=1e9, page_burst=1e9)
    async with serving(field, plenty) as site:
        assert site.operator.broker is not None
        served = site.operator.broker.server.routes.served
        told = {
            path: frozenset(each.upper() for each in ways if each != "parameters")
            for path, ways in document()["paths"].items()
        }
        assert served == told
        await field.until_ready("nightly")
        bearer = Pod.create(field, "ingest-1").token()
        # The bearer is given to every request; what is refused without one is tried below and in the refusals' tests.
        await explore(
            site,
            tmp_path,
            f"--header=Authorization: Bearer {bearer}",
            "--phases=examples,coverage,fuzzing",
            "--max-examples=25",
            "--exclude-checks=ignored_auth,positive_data_acceptance,unsupported_method",
        )


@pytest.mark.cluster
async def test_without_a_token_there_is_one_answer(field: Field, tmp_path: Path) -> None:
    async with serving(field) as site:
        await explore(
            site,
            tmp_path,
            "--phases=coverage",
            "--mode=positive",
            "--max-examples=5",
            "--exclude-checks=positive_data_acceptance,unsupported_method",
        )
