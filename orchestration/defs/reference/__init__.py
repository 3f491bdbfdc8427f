"""Reference data of the exchange: its products, and its own candles."""
