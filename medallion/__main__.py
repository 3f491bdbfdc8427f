"""`python -m medallion` is the command `medallion`."""

from medallion.cli import main

main()
