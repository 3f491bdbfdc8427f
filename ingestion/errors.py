"""What can end the ingester. Each message tells its reader what to do, without a traceback."""

from __future__ import annotations


class IngestionError(Exception):
    """The ingester had to give up; the message says what to do."""


class FatalFeedError(IngestionError):
    """The feed can't be read, and no retry will cure it."""


class FatalBronzeError(IngestionError):
    """Bronze can't be written with these settings."""


class FatalRestError(IngestionError):
    """The exchange's REST interface can't be asked with these settings."""


class LedgerAwayError(IngestionError):
    """What is missing can't be read or written; trying again may help."""


class BackfillError(IngestionError):
    """What is asked for makes no sense, or the exchange doesn't have it."""


class MetricsPortError(IngestionError):
    """The port for the metrics can't be opened."""


class FatalSpoolError(IngestionError):
    """The spool can't be used with these settings, or by this version."""


class DamagedSpoolError(IngestionError):
    """Frames that were in the spool can't be read any more."""


class UnsavedFramesError(IngestionError):
    """The ingester was stopped while the database was away and the spool full: frames are lost.

    Args:
        frames: how many frames are neither in bronze nor in the spool.
        waited: how long the database was given, in seconds.
        why_not: why the spool took no more.

    """

    def __init__(self, frames: int, waited: float, why_not: str) -> None:
        self.frames = frames
        super().__init__(
            f"{frames} frames are NOT in bronze: the database took nothing for {waited:g} s while "
            f"stopping, and the spool did not take them either ({why_not}). Look at the log for "
            "bronze_unreachable, and make room for SPOOL_DIR; DRAIN_SECONDS is how long stopping "
            "waits for the database."
        )
