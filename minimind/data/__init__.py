"""Turns JSON lines into batches: rows, formats, tokens, packed rows, and the order they are read
in. It holds no data of the project's own, which minimind.samples makes, and no training
objective."""
