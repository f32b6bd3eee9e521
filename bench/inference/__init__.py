"""Measures how quickly tokens are generated: by the engine beside `transformers`, and by the
server."""
