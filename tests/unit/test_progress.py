"""Progress is for who looks on, and leaves nothing behind."""

from __future__ import annotations

import io
import time

import pytest
from rich.console import Console

from medallion.progress import progress


def test_a_terminal_is_shown_how_far_it_is_and_how_long_it_takes_still() -> None:
    screen = io.StringIO()
    with progress(Console(file=screen, force_terminal=True, width=100), "Moving", "rows") as tell:
        for done in range(1, 4):
            tell(done * 1000, 4000)
            time.sleep(0.1)
    shown = screen.getvalue()
    assert "Moving" in shown
    assert "3,000 of 4,000 rows" in shown
    assert " left" in shown
    # The last that is written takes the line away.
    assert shown.endswith("\x1b[2K")


def test_a_log_is_spared(capfd: pytest.CaptureFixture[str]) -> None:
    log = io.StringIO()
    with progress(Console(file=log), "Moving", "rows") as tell:
        tell(1, 2)
    assert (log.getvalue(), *capfd.readouterr()) == ("", "", "")
