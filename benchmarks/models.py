"""dbt, kept in this process: its start-up is no part of what is measured."""

from __future__ import annotations

from pathlib import Path

from dbt.cli.main import dbtRunner

from medallion.dbt import DBT_PROJECT, install_packages, packages_are_installed
from orchestration.project import connected
from warehouse.settings import Role, WarehouseSettings


class Models:
    """The models and checks of one database.

    Args:
        settings: the database.
        target: a folder for what dbt writes.

    """

    def __init__(self, settings: WarehouseSettings, target: Path) -> None:
        if not packages_are_installed():
            install_packages()
        self._connection = settings.connection(Role.TRANSFORM)
        self._options = [
            *("--project-dir", str(DBT_PROJECT), "--profiles-dir", str(DBT_PROJECT)),
            *("--target-path", str(target), "--log-level-file", "none"),
        ]
        with connected(self._connection):
            parsed = dbtRunner().invoke(["--quiet", "parse", *self._options])
        self._runner = dbtRunner(manifest=parsed.result)  # type: ignore[arg-type]

    def __call__(self, *arguments: str) -> None:
        """Run a command of dbt.

        Raises:
            SystemExit: it failed, and said why.

        """
        with connected(self._connection):
            done = self._runner.invoke(["--quiet", *arguments, *self._options])
        if not done.success:
            raise SystemExit("dbt failed; it said why above.")
