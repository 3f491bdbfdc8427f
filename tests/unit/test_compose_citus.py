"""The Citus cluster of docker-compose.citus.yml, as far as it can be judged without an engine."""

from __future__ import annotations

import ipaddress
import re
from typing import Any

import pytest
import yaml

from tests.conftest import ROOT


@pytest.fixture(scope="module")
def compose() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.citus.yml").read_text())
    return loaded


def test_every_image_is_pinned_and_every_service_tells_its_health(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert re.fullmatch(r"citusdata/citus:\d+\.\d+\.\d+", service["image"])
        assert service["healthcheck"]["test"]


def test_there_is_no_default_password(compose: dict[str, Any]) -> None:
    for service in compose["services"].values():
        assert service["environment"]["POSTGRES_PASSWORD"].startswith("${PGPASSWORD:?")


def test_only_the_coordinator_is_reached_from_outside_and_from_this_machine_alone(
    compose: dict[str, Any],
) -> None:
    ports = {name: service.get("ports", []) for name, service in compose["services"].items()}
    assert ports.pop("coordinator") == ["127.0.0.1:${PGPORT:-5432}:5432"]
    assert set(map(tuple, ports.values())) == {()}


def test_only_nodes_are_let_in_without_a_password(compose: dict[str, Any]) -> None:
    nodes = compose["networks"]["nodes"]
    assert nodes["internal"]
    subnet = ipaddress.ip_network(nodes["ipam"]["config"][0]["subnet"])
    rules = [line.split() for line in compose["configs"]["pg_hba"]["content"].splitlines()]
    trusted = [rule[3] for rule in rules if rule[0] == "host" and rule[-1] == "trust"]
    assert [ipaddress.ip_network(address) for address in trusted] == [subnet]
    assert rules[-1][-1] == "scram-sha-256"
