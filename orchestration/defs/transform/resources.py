"""The dbt of this environment, wherever PATH leads."""

import dagster as dg
from dagster_dbt import DbtCliResource

from orchestration.project import DBT, project


@dg.definitions
def resources() -> dg.Definitions:
    """Give the assets their dbt."""
    return dg.Definitions(
        resources={"dbt": DbtCliResource(project_dir=project, dbt_executable=str(DBT))}
    )
