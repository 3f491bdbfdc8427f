"""The market page: gold and the ops history in a browser."""
