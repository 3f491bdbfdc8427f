"""What keeps the lakehouse whole."""
