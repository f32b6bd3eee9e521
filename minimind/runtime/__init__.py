"""Manages the process and its machine: ranks, devices, memory, seeds, logging, files written whole,
worker processes. It knows nothing of models, data or training."""
