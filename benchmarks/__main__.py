"""Runs the benchmarks that docs/performance.md has a place for, and writes each into its place.

    .venv/bin/python -m benchmarks [--full] [NAME …]

A place is what stands between `<!-- bench:NAME -->` and `<!-- /bench:NAME -->`; the module
`benchmarks.NAME` prints what belongs there.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Final

from benchmarks.measure import options, tell

PERFORMANCE: Final = Path(__file__).resolve().parents[1] / "docs" / "performance.md"


def places(document: str) -> list[str]:
    """Return the benchmarks that a document has a place for."""
    return re.findall(r"^<!-- bench:(\w+) -->$", document, re.MULTILINE)


def put(document: str, name: str, section: str) -> str:
    """Return a document with a section in its place."""
    begin, end = f"<!-- bench:{name} -->\n", f"<!-- /bench:{name} -->\n"
    before, _, rest = document.partition(begin)
    after = rest.partition(end)[2]
    return f"{before}{begin}{section.strip()}\n{end}{after}"


def main() -> None:
    """Run all of them, or those that are named."""
    parser = options(__doc__)
    known = places(PERFORMANCE.read_text())
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(known)}")
    chosen = parser.parse_args()
    if unknown := set(chosen.names).difference(known):
        parser.error(f"{PERFORMANCE} has no place for {', '.join(sorted(unknown))}.")
    failed = []
    for name in chosen.names or known:
        tell(f"benchmarks.{name}")
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{name}", *(["--full"] if chosen.full else [])],
            stdout=subprocess.PIPE,
            text=True,
            check=False,
        )
        if done.returncode:
            failed.append(name)
            continue
        # At once, and read anew: what comes later may fail, or take hours.
        PERFORMANCE.write_text(put(PERFORMANCE.read_text(), name, done.stdout))
    if failed:
        raise SystemExit(f"Not measured, for the reasons above: {', '.join(failed)}.")


if __name__ == "__main__":
    main()
