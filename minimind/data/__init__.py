"""From JSON lines to batches: rows, tokens, packed rows, and the order they are read in."""
