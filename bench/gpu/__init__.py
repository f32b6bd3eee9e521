"""Runs tests and then every benchmark on a machine with a GPU, in parts of minutes."""
