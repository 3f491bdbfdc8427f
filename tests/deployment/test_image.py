"""What the image holds, as far as it can be judged without building it."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
from importlib.metadata import requires

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.conftest import ROOT


def names(lines: list[str]) -> set[str]:
    """Return the packages of requirements that hold here."""
    wanted = map(Requirement, lines)
    return {
        canonicalize_name(one.name)
        for one in wanted
        if one.marker is None or one.marker.evaluate({"extra": ""})
    }


def test_the_image_has_what_the_product_needs_and_no_tool_of_its_developers() -> None:
    with (ROOT / "requirements.lock").open() as lock:
        script = [sys.executable, ROOT / "docker" / "runtime_requirements.py"]
        done = subprocess.run(script, stdin=lock, capture_output=True, text=True, check=True)
    entries = re.findall(r"(?m)^([\w.-]+).*\n((?:    .*\n)+)", done.stdout)
    found = {canonicalize_name(name) for name, _ in entries}
    assert all("--hash=sha256:" in rest for _, rest in entries)

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    needed: set[str] = set()
    new = names(project["project"]["dependencies"])
    while new:
        needed |= new
        new = {name for one in new for name in names(requires(one) or [])} - needed
    assert needed <= found
    assert not names(project["dependency-groups"]["dev"]) & found


def test_what_is_copied_is_not_ignored() -> None:
    copied = re.findall(r"(?m)^COPY (?!--from)(.*) \S+$", (ROOT / "Dockerfile").read_text())
    let_in = {
        line.removeprefix("!")
        for line in (ROOT / ".dockerignore").read_text().splitlines()
        if line.startswith("!")
    }
    assert set(" ".join(copied).split()) == let_in
