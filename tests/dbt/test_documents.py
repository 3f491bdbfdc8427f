"""docs/ says what is there; `make documents` makes it say so."""

from __future__ import annotations

import re

import pytest

from tests.conftest import ROOT
from tests.dbt.conftest import Dbt, Lakehouse
from tests.documents import Document, commands, dictionary, graph

pytestmark = pytest.mark.postgres18_only

LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)")


def test_documents_are_current(lakehouse: Lakehouse, dbt: Dbt, pytestconfig: pytest.Config) -> None:
    lakehouse.build("--resource-type", "model", "--resource-type", "snapshot")
    made = {
        Document("cli.md", commands): commands(),
        Document("architecture.md", graph): graph(dbt.manifest, lakehouse),
        Document("data-dictionary.md", dictionary): dictionary(lakehouse),
    }
    for document, part in made.items():
        if pytestconfig.getoption("--write-documents", default=False):
            document.write(part)
        assert document.read() == part, f"{document.path.name} is old: run `make documents`"


def anchors(text: str) -> set[str]:
    """Return what GitHub makes of the headings."""
    headings = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_links_lead_somewhere() -> None:
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md"), *ROOT.glob("dashboards/*.md")]
    for page in pages:
        for path, anchor in LINK.findall(page.read_text()):
            target = page.parent / path if path else page
            assert target.exists(), f"{page.name}: {path}"
            assert not anchor or anchor in anchors(target.read_text()), f"{page.name}: #{anchor}"
    linked = {(ROOT / path).resolve() for path, _ in LINK.findall((ROOT / "README.md").read_text())}
    assert set(pages) - linked == {ROOT / "README.md"}
