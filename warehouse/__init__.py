"""The database itself: where it is, who connects, what it holds."""
