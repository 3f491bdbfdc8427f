"""Where log events go, and how they are written."""

from __future__ import annotations

import logging
import os
from typing import TextIO

import structlog


def log_to(stream: TextIO) -> None:
    """Send events to a stream: readable on a terminal, JSON lines elsewhere.

    FORCE_COLOR says that what is at the other end of a pipe leads to a terminal, as to Rich.
    """
    readable = stream.isatty() or "FORCE_COLOR" in os.environ
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.dev.ConsoleRenderer() if readable else structlog.processors.JSONRenderer(),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
