"""Print what of a lock the product itself needs: the rest came with the group `dev`.

uv writes behind each package who asked for it.

    python docker/runtime_requirements.py < requirements.lock
"""

from __future__ import annotations

import re
import sys

PRODUCT = "medallion (pyproject.toml)"
_ENTRY = re.compile(r"(?m)^([\w.-]+)(?:\[.*\])?==.*\n(?:    .*\n)+")
_ASKED_BY = re.compile(r"(?m)^    # (?:via)? *(\S.*)$")


def of_the_product(lock: str) -> str:
    """Return the entries that the product asked for, and all that these asked for."""
    entries = [(found[1], found[0]) for found in _ENTRY.finditer(lock)]
    asked_by: dict[str, set[str]] = {}
    for name, entry in entries:
        asked_by.setdefault(name, set()).update(_ASKED_BY.findall(entry))
    needed = {PRODUCT}
    while new := {name for name, by in asked_by.items() if by & needed} - needed:
        needed |= new
    return "".join(entry for name, entry in entries if name in needed)


if __name__ == "__main__":
    sys.stdout.write(of_the_product(sys.stdin.read()))
