"""Fills the guide in docs/guide with code from the source, and with what its examples print."""
