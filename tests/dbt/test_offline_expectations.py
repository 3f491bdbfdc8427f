"""The offline package of expectations, each seen to pass and to fail on rows beside its verdict.

The numbers are the verdicts of dbt_expectations 0.10.9, which the offline package stands in for.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from dbt.cli.main import dbtRunner
from dbt.exceptions import CompilationError

from tests.conftest import ROOT, Database

MODELS = ROOT / "dbt_project" / "models"
PACKAGES = ROOT / "dbt_project" / "offline_packages"

Arguments = dict[str, Any]


class Case(NamedTuple):
    """Rows, an expectation of them, and how many failures it reports: none is a pass."""

    expectation: str
    arguments: Arguments
    columns: str
    rows: str
    failures: int | str


def _cases(
    expectation: str, columns: str, always: Arguments, *cases: tuple[str, Arguments, int | str]
) -> list[Case]:
    return [
        Case(expectation, always | arguments, columns, rows, failures)
        for rows, arguments, failures in cases
    ]


PRICES = "values (0, 1), (1, 2), (5, 3), (9, 4), (10, null), (null, 6)"
SIDES = "values ('buy', 1), ('sell', 2), ('Buy', 3), ('', null), (null, 5)"
PAIRS = "values (3, 2, 1), (2, 2, 2), (1, 2, null), (null, 2, 4), (1, null, 5), (null, null, 6)"
KEYS = """values (1, 1, 1), (1, 1, 2), (1, 1, 3), (2, 1, 4),
    (1, null, 5), (1, null, 6), (null, null, 7), (null, null, 8)"""
HOUR_OLD = "values (now() - interval '1 hour', 1)"
TOMORROW = "values (now() + interval '1 day', 1)"

CASES = [
    *_cases(
        "expect_column_values_to_be_between",
        "price, id",
        {"column_name": "price"},
        (PRICES, {"min_value": 0, "max_value": 10}, 0),
        (PRICES, {"min_value": 1, "max_value": 9}, 2),
        (PRICES, {"min_value": 1}, 1),
        (PRICES, {"max_value": 9}, 1),
        (PRICES, {"min_value": 0, "max_value": 0}, 4),
        (PRICES, {"min_value": 1, "max_value": 9, "strictly": True}, 4),
        (PRICES, {"min_value": 0, "strictly": True}, 1),
        (PRICES, {"min_value": "id", "max_value": "id + 1"}, 4),
        (PRICES, {"max_value": 1, "row_condition": "id is not null"}, 2),
        (PRICES, {"max_value": 1, "row_condition": "id = 1 or id = 4"}, 1),
        (PRICES, {"max_value": 1, "row_condition": "false or true"}, 3),
        (PRICES, {"min_value": 99, "row_condition": "false"}, 0),
        ("values (null::int, 1)", {"min_value": 1}, 0),
        ("select 1, 1 where false", {"min_value": 99}, 0),
        ("values ('NaN'::numeric, 1), ('Infinity', 2), (1.5, 3)", {"max_value": 1.5}, 2),
        ("values ('2026-01-01'::date, 1)", {"min_value": "'2026-01-02'"}, 1),
        ("values ('2026-01-01'::date, 1)", {"min_value": "2026-01-02"}, "error"),
    ),
    *_cases(
        "expect_column_values_to_be_in_set",
        "side, id",
        {"column_name": "side"},
        ("values ('buy', 1), ('sell', 2)", {"value_set": ["buy", "sell"]}, 0),
        (SIDES, {"value_set": ["buy", "sell"]}, 3),
        (SIDES, {"value_set": ["buy", "sell", ""]}, 2),
        (SIDES, {"value_set": [None, "buy"]}, 4),
        (SIDES, {"value_set": ["buy"], "row_condition": "side is not null"}, 3),
        (SIDES, {"value_set": ["buy"], "row_condition": "id = 1 or id = 2"}, 1),
        (SIDES, {"value_set": ["buy"], "row_condition": "false or true"}, 4),
        ("values ('a', 1), ('a', 2), ('b', 3)", {"value_set": ["b", "b"]}, 2),
        ("values ('it''s', 1)", {"value_set": ["it''s"]}, 0),
        ("values ('1.5', 1), ('1.50', 2)", {"value_set": [1.5]}, 1),
        ("values (1.50, 1), (3, 2)", {"value_set": [1.5, 2], "quote_values": False}, 1),
        ("values (1, 1), (2, null)", {"value_set": ["null", 1], "quote_values": False}, 1),
        ("values (1, 1)", {"value_set": [1]}, "error"),
        ("values ('buy', 1)", {"value_set": ["side"], "quote_values": False}, "error"),
        ("values ('buy', 1)", {"value_set": []}, "error"),
        ("select 'hold', 1 where false", {"value_set": ["buy"]}, 0),
    ),
    *_cases(
        "expect_column_pair_values_A_to_be_greater_than_B",
        "a, b, id",
        {"column_A": "a", "column_B": "b"},
        ("values (3, 2, 1), (2, 1, 2)", {}, 0),
        (PAIRS, {}, 2),
        (PAIRS, {"or_equal": True}, 1),
        (PAIRS, {"or_equal": False}, 2),
        (PAIRS, {"row_condition": "id is not null"}, 1),
        (PAIRS, {"row_condition": "id = 1 or id = 2"}, 1),
        (PAIRS, {"row_condition": "false or true"}, 2),
        (PAIRS, {"column_B": "b + 1"}, 3),
        ("values (now(), now() - interval '1 second', 1)", {}, 0),
        ("values (1, 'NaN'::numeric, 1), (1, 'Infinity', 2)", {}, 2),
        ("select 1, 2, 3 where false", {}, 0),
    ),
    *_cases(
        "expect_compound_columns_to_be_unique",
        'a, b, "Id"',
        {"column_list": ["a", "b"]},
        ("values (1, 1, 1), (1, 2, 2), (2, 1, 3)", {}, 0),
        (KEYS, {}, 2),
        (KEYS, {"ignore_row_if": "all_values_are_missing"}, 2),
        (KEYS, {"ignore_row_if": "any_value_is_missing"}, 1),
        (KEYS, {"column_list": ["a", "coalesce(b, 0)"]}, 3),
        (KEYS, {"column_list": ["b"]}, 1),
        (KEYS, {"column_list": ["a", "Id"], "quote_columns": True}, 0),
        (KEYS, {"column_list": ["a", "Id"]}, "error"),
        (KEYS, {"column_list": "ab"}, 2),
        (KEYS, {"row_condition": "b is null"}, 1),
        (KEYS, {"row_condition": "b is null or a is null"}, 2),
        (KEYS, {"row_condition": "false"}, 0),
        ("values (1.0, 'x', 1), (1.00, 'x', 2)", {}, 1),
        ("select 1, 1, 1 where false", {}, 0),
    ),
    *_cases(
        "expect_row_values_to_have_recent_data",
        "at, id",
        {"column_name": "at", "datepart": "minute", "interval": 15},
        ("values (now(), 1)", {}, 0),
        ("values (now(), 1)", {"interval": 0}, 0),
        ("values (now() - interval '15 minutes', 1)", {}, 0),
        ("values (now() - interval '901 seconds', 1)", {}, 1),
        (f"{HOUR_OLD}, (now(), 2), (null, 3)", {}, 0),
        (f"{HOUR_OLD}, (null, 2)", {}, 1),
        (f"{HOUR_OLD}, (now(), 2)", {"row_condition": "id = 1"}, 1),
        (f"{HOUR_OLD}, (now(), 2)", {"row_condition": "id = 1 or id = 2"}, 0),
        (HOUR_OLD, {"interval": 60}, 0),
        (HOUR_OLD, {"datepart": "hour", "interval": 1}, 0),
        (HOUR_OLD, {"datepart": "hour", "interval": 0.5}, 1),
        (HOUR_OLD, {"datepart": "week", "interval": 1}, 0),
        (HOUR_OLD, {"datepart": "fortnight", "interval": 1}, "error"),
        (TOMORROW, {}, 1),
        (f"{TOMORROW}, (now(), 2)", {}, 0),
        (f"{TOMORROW}, (now(), 2)", {"row_condition": "id = 1"}, 1),
        (f"{TOMORROW}, (now() - interval '1 day', 2)", {"row_condition": "id = 2 or id = 1"}, 0),
        ("values (null::timestamptz, 1)", {}, 1),
        ("select now(), 1 where false", {}, 1),
        ("values (now() at time zone 'UTC', 1)", {}, 0),
        ("values (now() at time zone 'America/New_York', 1)", {}, 1),
        ("values (now() at time zone 'Asia/Kathmandu', 1)", {}, 1),
        ("values (current_date, 1)", {"datepart": "day", "interval": 1}, 0),
        ("values (current_date - 2, 1)", {"datepart": "day", "interval": 1}, 1),
    ),
]

REFUSED = {
    "Neither min_value nor max_value": ("expect_column_values_to_be_between", {"column_name": "a"}),
    "column_list is empty": ("expect_compound_columns_to_be_unique", {"column_list": []}),
    "Unknown ignore_row_if": (
        "expect_compound_columns_to_be_unique",
        {"column_list": ["a"], "ignore_row_if": "never"},
    ),
    "interval is 'None': give a number": (
        "expect_row_values_to_have_recent_data",
        {"column_name": "a", "datepart": "day", "interval": None},
    ),
}


@pytest.mark.postgres18_only
def test_the_offline_package_gives_the_verdicts_of_dbt_expectations(
    database: Database, tmp_path: Path
) -> None:
    said = verdicts(tmp_path, database, CASES, PACKAGES)
    pairs = zip(CASES, said, strict=True)
    assert [(case, verdict) for case, verdict in pairs if verdict != case.failures] == []


@pytest.mark.postgres18_only
@pytest.mark.parametrize("message", REFUSED)
def test_an_argument_that_makes_no_sense_is_refused(
    database: Database, tmp_path: Path, message: str
) -> None:
    expectation, arguments = REFUSED[message]
    case = Case(expectation, arguments, "a", "values (1)", "refused")
    with pytest.raises(CompilationError, match=message):
        verdicts(tmp_path, database, [case], PACKAGES)


def test_the_offline_package_holds_what_the_models_use_and_each_is_seen_to_pass_and_fail() -> None:
    yaml = "".join(path.read_text() for path in MODELS.rglob("*.yml"))
    sql = "".join(path.read_text() for path in PACKAGES.rglob("*.sql"))
    used = set(re.findall(r"dbt_expectations\.(\w+)", yaml))
    assert set(re.findall(r"{% test (\w+)", sql)) == used
    assert {case.expectation for case in CASES if case.failures == 0} == used
    assert {case.expectation for case in CASES if case.failures not in {0, "error"}} == used


def verdicts(
    project: Path, database: Database, cases: list[Case], packages: Path
) -> list[int | str]:
    """Build a view of each case's rows with dbt; return its failures, or `error`, for each."""
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
            f"with cases ({case.columns}) as ({case.rows}) select * from cases"
        )
    directories = ["--project-dir", str(project), "--profiles-dir", str(project)]
    done = dbtRunner().invoke(["--quiet", "build", *directories, "--log-level-file", "none"])
    if done.exception:
        raise done.exception
    said = {
        result.node.name: str(result.status) if result.failures is None else result.failures
        for result in done.result
    }
    return [said[f"case_{number}"] for number in range(len(cases))]
