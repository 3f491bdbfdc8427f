"""The dbt project as Dagster sees it: which asset a model is, and its manifest."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DagsterDbtTranslatorSettings, DbtProject

from warehouse.settings import PROJECT_ROOT, ConnectionInfo, Role, WarehouseError, WarehouseSettings

DBT_PROJECT: Final = PROJECT_ROOT / "dbt_project"
DBT: Final = Path(sys.executable).with_name("dbt")
COINBASE: Final = dg.AssetKey(["coinbase", "market_data"])
BRONZE: Final = dg.AssetKey(["bronze", "coinbase_trades_raw"])
CANDLES: Final = dg.AssetKey(["bronze", "coinbase_candles_raw"])
ARCHIVE: Final = dg.AssetKey(["bronze", "archive_files"])
PRODUCTS: Final = dg.AssetKey(["bronze", "coinbase_products_raw"])

# A folder of its own: whoever runs dbt by hand meanwhile does not pull the manifest away.
project: Final = DbtProject(DBT_PROJECT, target_path=Path("target/dagster"))
RUN_TARGET: Final = DBT_PROJECT / "target" / "dagster_run"


class MarketTranslator(DagsterDbtTranslator):
    """Names the assets as the tables are named, and groups them by layer."""

    def __init__(self) -> None:
        super().__init__(DagsterDbtTranslatorSettings(enable_source_tests_as_checks=True))

    def get_asset_key(self, dbt_resource_props: Mapping[str, Any]) -> dg.AssetKey:
        """Return schema and name of the table; of an exposure, that it is for BI."""
        if dbt_resource_props["resource_type"] == "exposure":
            return dg.AssetKey(["bi", dbt_resource_props["name"]])
        return dg.AssetKey([dbt_resource_props["schema"], dbt_resource_props["name"]])

    def get_group_name(self, dbt_resource_props: Mapping[str, Any]) -> str:
        """Return the layer: bronze for a source, silver for a snapshot, else the model's folder."""
        if dbt_resource_props["resource_type"] == "source":
            return "bronze"
        if dbt_resource_props["resource_type"] == "snapshot":
            return "silver"
        return str(dbt_resource_props["fqn"][1])

    def get_asset_check_spec(
        self,
        asset_spec: dg.AssetSpec,
        manifest: Mapping[str, Any],
        unique_id: str,
        project: DbtProject | None,
    ) -> dg.AssetCheckSpec | None:
        """Describe a check as its YAML does; dagster-dbt looks elsewhere."""
        spec = super().get_asset_check_spec(asset_spec, manifest, unique_id, project)
        description = self.get_resource_props(manifest, unique_id)["description"]
        return spec._replace(description=description) if spec else None


translator: Final = MarketTranslator()


@contextmanager
def connected(connection: ConnectionInfo) -> Iterator[None]:
    """Lead dbt to the database while the context lasts: it reads the environment."""
    variables = connection.environment()
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def load_manifest() -> Path:
    """Return the manifest, written anew first where a file of the project is newer.

    Raises:
        WarehouseError: there is no database to connect to yet, or the project is wrong.

    """
    written = project.manifest_path.stat().st_mtime if project.manifest_path.exists() else 0.0
    if any(file.stat().st_mtime > written for file in _files()):
        environment = WarehouseSettings().connection(Role.TRANSFORM).environment()
        target = DBT_PROJECT / project.target_path
        target.mkdir(parents=True, exist_ok=True)
        # Several of Dagster's processes may begin at once: each writes its own, none reads half.
        with TemporaryDirectory(dir=target.parent, prefix=f"{target.name}-") as written_to:
            done = subprocess.run(
                # Not in part: of a changed test, dbt would forget what its YAML says.
                [
                    *(DBT, "--quiet", "--no-use-colors", "--no-partial-parse"),
                    *("parse", "--target-path", written_to, "--log-path", written_to),
                ],
                cwd=DBT_PROJECT,
                env={**os.environ, **environment},
                capture_output=True,
                text=True,
                check=False,
            )
            if done.returncode != 0:
                raise WarehouseError(f"dbt can't read its project:\n{done.stdout}")
            # The manifest last: its age tells whether this is to be done again.
            for name in ("partial_parse.msgpack", "manifest.json"):
                (Path(written_to) / name).replace(target / name)
    return project.manifest_path


def _files() -> Iterator[Path]:
    for folder in ("models", "macros", "tests", "snapshots", "dbt_packages"):
        yield from (DBT_PROJECT / folder).rglob("*.sql")
        yield from (DBT_PROJECT / folder).rglob("*.yml")
    yield from DBT_PROJECT.glob("*.yml")
