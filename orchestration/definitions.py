"""All that Dagster knows: `medallion dagster` loads it."""

from __future__ import annotations

from pathlib import Path

import dagster as dg


@dg.definitions
def defs() -> dg.Definitions:
    """Load each domain's folder."""
    found = dg.load_from_defs_folder(path_within_project=Path(__file__).parent)
    # Each run has one step: a process of its own for it takes six seconds to start.
    return dg.Definitions.merge(found, dg.Definitions(executor=dg.in_process_executor))
