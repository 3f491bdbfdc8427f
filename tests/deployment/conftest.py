"""docker-compose.yml as docker-compose itself reads it."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT

PASSWORDS = {
    "PGPASSWORD": "of-the-owner",
    "MEDALLION_INGEST_PASSWORD": "of-ingest",
    "MEDALLION_TRANSFORM_PASSWORD": "of-transform",
    "MEDALLION_READER_PASSWORD": "of-the-reader",
    "MEDALLION_ARCHIVE_PASSWORD": "of-the-archive",
}

Resolve = Callable[[dict[str, str]], subprocess.CompletedProcess[str]]


@pytest.fixture(scope="session")
def resolve(tmp_path_factory: pytest.TempPathFactory) -> Resolve:
    """Resolve the file with these variables, and none of the developer's `.env`."""
    program = shutil.which("docker-compose")
    if program is None:
        pytest.skip("there is no docker-compose")
    empty = tmp_path_factory.mktemp("compose") / "env"
    empty.touch()

    def run(variables: dict[str, str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, "--env-file", str(empty), "--profile", "metabase", "config"],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], **variables},
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.fixture(scope="session")
def services(resolve: Resolve) -> dict[str, Any]:
    """Return the services with passwords set, each of its own."""
    done = resolve(PASSWORDS)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = yaml.safe_load(done.stdout)["services"]
    return found
