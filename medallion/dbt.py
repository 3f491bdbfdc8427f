"""dbt's packages, and dbt itself in this process."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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


def deps() -> str | None:
    """Run `dbt deps`; where the package hub can't be reached, install the offline packages.

    Returns:
        What dbt said of the hub, where the offline packages were taken; else None.

    """
    done = subprocess.run(
        [Path(sys.executable).with_name("dbt"), "--no-use-colors", "deps"],
        cwd=DBT_PROJECT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode == 0:
        return None
    if not OFFLINE_PACKAGES.is_dir():
        raise WarehouseError(
            f"`dbt deps` failed, and {OFFLINE_PACKAGES} is missing:\n{done.stdout}"
        )
    install_packages()
    return done.stdout.strip().splitlines()[-1]


@dataclass(frozen=True)
class NodeProgress:
    """A node of the graph has been built or tested."""

    done: int
    total: int


def build(connection: ConnectionInfo, on_progress: Callable[[NodeProgress], None]) -> bool:
    """Run `dbt build` in this process; return whether every model and check passed.

    Raises:
        WarehouseError: dbt could not run at all.

    """
    from dbt.cli.main import dbtRunner  # noqa: PLC0415  (takes seconds to import)

    finished = 0

    def count(event: Any) -> None:
        nonlocal finished
        if event.info.name in {"LogModelResult", "LogTestResult", "SkippingDetails"}:
            finished += 1
            on_progress(NodeProgress(finished, max(event.data.total, finished)))

    os.environ.update(connection.environment())
    folders = ["--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT)]
    done = dbtRunner(callbacks=[count]).invoke(["--quiet", "build", *folders])
    if done.exception:
        raise WarehouseError(f"dbt could not run: {done.exception}")
    return done.success
