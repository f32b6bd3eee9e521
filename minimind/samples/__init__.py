"""Generates the project's own training data (texts and conversations about a small made-up world,
in English and Chinese) and ships the tokenizer trained on it. A run without --data trains on this
data; minimind.data reads and packs it. `tools` runs in worker processes and imports no PyTorch."""
