"""Reference networks, and networks that the user brings."""
