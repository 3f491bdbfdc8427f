"""What docker-compose.yml promises, as far as it can be judged without an engine."""

from __future__ import annotations

import re
from typing import Any

import pytest

from ingestion.settings import IngestionSettings
from medallion import stack
from orchestration.settings import OrchestrationSettings
from tests.conftest import ROOT
from tests.deployment.conftest import PASSWORDS, Resolve

INGEST, TRANSFORM = "MEDALLION_INGEST_PASSWORD", "MEDALLION_TRANSFORM_PASSWORD"
READER, ARCHIVE = "MEDALLION_READER_PASSWORD", "MEDALLION_ARCHIVE_PASSWORD"
NEEDED = {
    "postgres": {"PGPASSWORD"},
    "migrate": set(PASSWORDS),
    "ingest": {INGEST},
    "transform": {TRANSFORM},
    "dagster-code": {INGEST, TRANSFORM, ARCHIVE},
    "dagster-webserver": set(),
    "dagster-daemon": set(),
    "dashboard": {READER},
    "metabase": set(),
}
PORTS = {"dagster-code": 4000, "dagster-webserver": 3000, "dashboard": 8501}


def names(fields: dict[str, Any]) -> set[str]:
    return {name.upper() for name in fields}


@pytest.mark.parametrize("missing", PASSWORDS)
def test_nothing_starts_without_each_password(resolve: Resolve, missing: str) -> None:
    # Empty is no password either.
    done = resolve({**PASSWORDS, missing: ""})
    assert done.returncode != 0
    assert f"set {missing}" in done.stderr


def test_each_container_has_the_passwords_that_it_needs_and_no_other(
    services: dict[str, Any],
) -> None:
    known = {
        name: {of for of, secret in PASSWORDS.items() if secret in str(service)}
        for name, service in services.items()
    }
    assert known == NEEDED


def test_containers_run_the_commands_of_medallion_up(services: dict[str, Any]) -> None:
    ordinary = stack.services(
        dagster_port=PORTS["dagster-webserver"],
        dashboard_port=PORTS["dashboard"],
        code_port=PORTS["dagster-code"],
    )
    natively = {service.name: service.command for service in [stack.MIGRATE, *ordinary]}
    contained = {
        name: tuple(
            re.sub("^dagster-code:", "127.0.0.1:", argument)
            for argument in service["command"]
            if argument not in {"--host", "0.0.0.0"}  # noqa: S104  (all of a container)
        )
        for name, service in services.items()
        if service["image"].startswith("medallion:")
    }
    assert contained == natively


def test_what_waits_for_another_natively_does_so_in_containers(services: dict[str, Any]) -> None:
    for service in stack.services(3000, 8501, 4000):
        ready = {name: {"condition": "service_healthy"} for name in service.after}
        migrated = {"migrate": {"condition": "service_completed_successfully"}}
        assert services[service.name]["depends_on"] == (ready or migrated)


def test_every_setting_reaches_the_service_that_reads_it(services: dict[str, Any]) -> None:
    feeds = {name for name in names(IngestionSettings.model_fields) if name.startswith("COINBASE")}
    assert names(IngestionSettings.model_fields) <= services["ingest"]["environment"].keys()
    # REST is asked by jobs, too, and alerts are sent by one.
    wanted = feeds | names(OrchestrationSettings.model_fields) | {"MEDALLION_BRONZE_DAYS"}
    assert wanted <= services["dagster-code"]["environment"].keys()


def test_containers_can_do_little(services: dict[str, Any]) -> None:
    for name, service in services.items():
        assert service["user"] not in {"0", "root"}, name
        assert service["read_only"] == (name != "metabase"), name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["deploy"]["resources"]["limits"].keys() == {"cpus", "memory"}, name
        assert service["pids_limit"], name


def test_ports_are_open_to_this_machine_alone(services: dict[str, Any]) -> None:
    ports = {name: service["ports"] for name, service in services.items() if "ports" in service}
    assert ports.keys() == {"postgres", "dagster-webserver", "dashboard", "metabase"}
    assert all(port.startswith("127.0.0.1:") for each in ports.values() for port in each)


def test_images_are_pinned_and_containers_come_back_and_tell_their_health(
    services: dict[str, Any],
) -> None:
    version = re.search(r'(?m)^version = "(.+)"', (ROOT / "pyproject.toml").read_text())
    assert version is not None
    for name, service in services.items():
        assert re.search(r":v?\d+(\.\d+)+(-bookworm)?$", service["image"]), name
        if name == "migrate":
            assert service["restart"] == "on-failure"
        else:
            assert service["restart"] == "unless-stopped", name
            assert service["healthcheck"]["test"], name
        if "build" in service:
            assert service["image"] == f"medallion:{version[1]}"


def test_what_is_written_lies_in_a_named_volume(services: dict[str, Any]) -> None:
    volumes = {
        name: {volume.partition(":")[0] for volume in service.get("volumes", [])}
        for name, service in services.items()
    }
    assert volumes == {
        "postgres": {"postgres"},
        "migrate": set(),
        "ingest": {"spool"},
        "transform": {"dagster"},
        "dagster-code": {"dagster", "archive"},
        "dagster-webserver": {"dagster"},
        "dagster-daemon": {"dagster"},
        "dashboard": set(),
        "metabase": {"metabase"},
    }
