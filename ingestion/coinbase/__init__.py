"""What Coinbase says: frames, and the socket that brings them."""
