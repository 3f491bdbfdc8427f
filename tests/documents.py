"""Parts of docs/ that are made of what is there: the commands, the graph, and the tables."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterator
from typing import Any

import typer
from dbt.contracts.graph.manifest import Manifest
from typer.cli import get_docs_for_click

from medallion.cli import app
from tests.conftest import ROOT
from tests.dbt.conftest import Lakehouse

LAYERS = ("bronze", "staging", "silver", "gold", "ops")
WRITERS = {
    "ingestion": ("medallion_ingest", "medallion ingest, backfill, reconcile, products"),
    "archive": ("medallion_archive", "medallion archive, restore"),
}
"""Who writes bronze: role and commands."""
# Of the columns of a table that may be written, one is enough: of some, others are generated.
WRITTEN = """
    select relname as name
    from pg_class
    where
        relnamespace = 'bronze'::regnamespace
        and relkind in ('r', 'p')
        and not relispartition
        and has_any_column_privilege($1, oid, 'insert')
    order by relname
"""
COLUMNS = """
    select
        nspname as schema,
        relname as table,
        relkind = 'v' as is_view,
        obj_description(pg_class.oid) as meaning,
        attname as column,
        replace(format_type(atttypid, atttypmod), 'timestamp with time zone', 'timestamptz')
        as type,
        col_description(pg_class.oid, attnum) as column_meaning
    from pg_class
    inner join pg_namespace on pg_namespace.oid = relnamespace
    inner join pg_attribute on attrelid = pg_class.oid and attnum > 0 and not attisdropped
    where
        nspname in ('bronze', 'silver', 'gold', 'ops')
        and relkind in ('r', 'p', 'v')
        and not relispartition
    order by
        array_position(array['bronze', 'silver', 'gold', 'ops'], nspname::text), relname, attnum
"""


def commands() -> str:
    """Describe each command as its `--help` does."""
    command = typer.main.get_command(app)
    told = get_docs_for_click(obj=command, ctx=typer.Context(command), name="medallion", indent=1)
    # Without its lists of them, which cut each sentence short.
    return re.sub(r"\*\*Commands\*\*:\n\n(\* .*\n)+\n?", "", told).strip()


def graph(manifest: Manifest, lakehouse: Lakehouse) -> str:
    """Draw who writes bronze, what is made of it, and who reads that; reports read whole layers."""
    members: dict[str, list[str]] = {layer: [] for layer in LAYERS}
    layers: dict[str, str] = {}
    edges: list[tuple[str, str]] = []
    for writer, (role, _) in WRITERS.items():
        edges += [(writer, row["name"]) for row in lakehouse.rows(WRITTEN, role)]
    for unique_id, layer, node in sorted(_tables(manifest)):
        layers[unique_id] = layer
        members[layer].append(node.name)
        parents = getattr(node, "depends_on_nodes", [])
        edges += [(parent.rsplit(".", 1)[-1], node.name) for parent in sorted(parents)]
    for report in sorted(manifest.exposures.values(), key=lambda report: report.name):
        read = sorted({layers[parent] for parent in report.depends_on_nodes}, key=LAYERS.index)
        edges += [(layer, report.name) for layer in read]

    lines = ["```mermaid", "flowchart LR", "    coinbase([Coinbase])"]
    lines += [
        f'    {writer}["{said.replace(", ", "<br>")}"]' for writer, (_, said) in WRITERS.items()
    ]
    for layer, names in members.items():
        shape = "[{}]" if layer in {"staging", "ops"} else "[({})]"
        lines += [f"    subgraph {layer}", *(f"        {n}{shape.format(n)}" for n in names)]
        lines.append("    end")
    lines += [f"    {r.name}([{r.label}])" for _, r in sorted(manifest.exposures.items())]
    lines += ["    coinbase --> ingestion", *(f"    {one} --> {other}" for one, other in edges)]
    return "\n".join([*lines, "```"])


def _tables(manifest: Manifest) -> Iterator[tuple[str, str, Any]]:
    for source in manifest.sources.values():
        if source.schema == "bronze":
            yield source.unique_id, "bronze", source
    for node in manifest.nodes.values():
        if node.resource_type == "snapshot":
            yield node.unique_id, node.schema, node
        elif node.resource_type == "model":
            yield node.unique_id, node.fqn[1], node


def dictionary(lakehouse: Lakehouse) -> str:
    """Describe each table and column by the database's own types and comments."""
    tables: dict[tuple[str, str, bool, str], list[str]] = defaultdict(list)
    for row in lakehouse.rows(COLUMNS):
        key = row["schema"], row["table"], row["is_view"], row["meaning"]
        meaning = row["column_meaning"].replace("|", "\\|")
        tables[key].append(f"| `{row['column']}` | {row['type']} | {meaning} |")
    lines: list[str] = []
    schema = None
    for (of_schema, table, is_view, meaning), columns in tables.items():
        if of_schema != schema:
            lines += [f"## {of_schema}", ""]
            schema = of_schema
        lines += [f"### {of_schema}.{table}", "", f"{'View. ' if is_view else ''}{meaning}", ""]
        lines += ["| column | type | meaning |", "| --- | --- | --- |", *columns, ""]
    return "\n".join(lines).strip()


class Document:
    """A page of docs/, of which the part between two comments is made by a function here."""

    def __init__(self, name: str, made_by: Callable[..., str]) -> None:
        self.path = ROOT / "docs" / name
        mark = f"<!-- made by tests/documents.py, {made_by.__name__}: `make documents` -->"
        self._mark, self._end = f"{mark}\n\n", "\n\n<!-- end -->"

    def read(self) -> str:
        """Return the part."""
        _, made, _ = self._split()
        return made

    def write(self, made: str) -> None:
        """Put the part in place."""
        before, _, behind = self._split()
        self.path.write_text(f"{before}{self._mark}{made}{self._end}{behind}")

    def _split(self) -> tuple[str, str, str]:
        parts = re.fullmatch(
            f"(.*){re.escape(self._mark)}(.*){re.escape(self._end)}(.*)",
            self.path.read_text(),
            flags=re.DOTALL,
        )
        assert parts, f"{self.path} lacks {self._mark}"
        before, made, behind = parts.groups()
        return before, made, behind
