"""dbt's packages, and dbt itself in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from medallion.errors import FailedError
from warehouse.settings import PROJECT_ROOT, ConnectionInfo, WarehouseError

DBT_PROJECT = PROJECT_ROOT / "dbt_project"
PACKAGES = DBT_PROJECT / "dbt_packages"
OFFLINE_PACKAGES = DBT_PROJECT / "offline_packages"


def packages_are_installed() -> bool:
    """Tell whether `dbt deps` or `install_packages` has been here."""
    return (PACKAGES / "dbt_expectations" / "dbt_project.yml").exists()


def install_packages() -> None:
    """Put the offline packages where `dbt deps` would put those of the hub."""
    for package in OFFLINE_PACKAGES.iterdir():
        shutil.rmtree(PACKAGES / package.name, ignore_errors=True)
        shutil.copytree(package, PACKAGES / package.name)


def deps() -> bool:
    """Run `dbt deps`; where the package hub can't be reached, install the offline packages.

    Returns:
        Whether the packages came from the hub.

    Raises:
        WarehouseError: dbt failed otherwise, for example because packages.yml is wrong.

    """
    done = subprocess.run(
        [Path(sys.executable).with_name("dbt"), "--no-use-colors", "deps"],
        cwd=DBT_PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return True
    if "connection" not in done.stdout.lower():
        raise WarehouseError(f"`dbt deps` failed:\n{done.stdout}")
    install_packages()
    return False


def build(connection: ConnectionInfo, on_progress: Callable[[float, float], None]) -> list[str]:
    """Run `dbt build` in this process.

    Args:
        connection: the database.
        on_progress: told how many nodes of the graph, models and checks, are done, and of how many.

    Returns:
        For each model or check that failed, its name and what dbt said; nothing where all passed.

    Raises:
        FailedError: dbt could not run at all.

    """
    from dbt.artifacts.schemas.run import RunExecutionResult  # noqa: PLC0415  (takes seconds)
    from dbt.cli.main import dbtRunner  # noqa: PLC0415

    total = 0
    done: set[str] = set()

    def count(event: Any) -> None:
        nonlocal total
        if event.info.name == "LogStartLine":
            total = event.data.total
        elif event.info.name in {"NodeFinished", "SkippingDetails"}:
            # Of a skipped node both are told.
            done.add(event.data.node_info.unique_id)
            on_progress(len(done), total)

    os.environ.update(connection.environment())
    folders = ["--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT)]
    ended = dbtRunner(callbacks=[count]).invoke(["--quiet", "build", *folders])
    if isinstance(ended.exception, KeyboardInterrupt):
        raise ended.exception
    if ended.exception:
        raise FailedError(f"dbt could not run: {ended.exception!r}")
    assert isinstance(ended.result, RunExecutionResult)  # noqa: S101  (what `build` returns)
    return [
        f"{result.node.name}: {result.message}"
        for result in ended.result.results
        if result.status in {"error", "fail", "runtime error"}
    ]
