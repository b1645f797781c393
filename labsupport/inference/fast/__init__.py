"""The compiled twin of the engine's forward pass: the same numbers as the readable one, with fewer operations."""
