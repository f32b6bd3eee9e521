"""Measures how quickly text becomes batches, and whether memory grows with a file."""
