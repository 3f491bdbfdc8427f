"""The offline package of expectations, each seen to pass and to fail on rows beside its verdict."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from dbt.cli.main import dbtRunner

from tests.conftest import ROOT, Database

PACKAGES = ROOT / "dbt_project" / "offline_packages"


class Case(NamedTuple):
    """Rows, an expectation of them, and how many failures it reports: none is a pass."""

    expectation: str
    arguments: dict[str, Any]
    columns: str
    rows: str
    failures: int


def _cases(expectation: str, columns: str, *cases: tuple[str, dict[str, Any], int]) -> list[Case]:
    return [
        Case(expectation, arguments, columns, rows, failures) for rows, arguments, failures in cases
    ]


CASES = [
    *_cases(
        "expect_column_values_to_be_between",
        "price, id",
        ("(1, 1), (9, 2)", {"column_name": "price", "min_value": 1, "max_value": 9}, 0),
    ),
]


def verdicts(project: Path, database: Database, cases: list[Case], packages: Path) -> list[Any]:
    """Build a view of each case's rows with dbt and return what its test said of it."""
    files = {
        "dbt_project.yml": {
            "name": "cases",
            "profile": "cases",
            "packages-install-path": str(packages),
            "flags": {"send_anonymous_usage_stats": False},
            "vars": {"dbt_date:time_zone": "UTC"},
        },
        "profiles.yml": {
            "cases": {
                "target": "cases",
                "outputs": {
                    "cases": {
                        "type": "postgres",
                        "host": database.host,
                        "port": database.port,
                        "dbname": database.name,
                        "user": "medallion_transform",
                        "password": database.password("medallion_transform"),
                        "schema": "silver",
                        "threads": 2,
                    }
                },
            }
        },
        "models/models.yml": {
            "models": [
                {
                    "name": f"rows_{number}",
                    "data_tests": [
                        {
                            f"dbt_expectations.{case.expectation}": {
                                "name": f"case_{number}",
                                "arguments": case.arguments,
                            }
                        }
                    ],
                }
                for number, case in enumerate(cases)
            ]
        },
    }
    (project / "models").mkdir()
    for name, content in files.items():
        (project / name).write_text(json.dumps(content))
    for number, case in enumerate(cases):
        (project / "models" / f"rows_{number}.sql").write_text(
            f"select * from (values {case.rows}) as cases ({case.columns})"
        )
    directories = ["--project-dir", str(project), "--profiles-dir", str(project)]
    done = dbtRunner().invoke(["--quiet", "build", *directories, "--log-level-file", "none"])
    if done.exception:
        raise done.exception
    said = {
        result.node.name: result.message if result.failures is None else result.failures
        for result in done.result
    }
    return [said[f"case_{number}"] for number in range(len(cases))]
