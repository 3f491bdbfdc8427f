"""What went wrong although nothing is set wrongly."""


class FailedError(Exception):
    """What was asked has failed; trying again may help. The message says what happened."""
