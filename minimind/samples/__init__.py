"""The project's own data: a small world, texts and conversations about it in English and
Chinese, and the tokenizer that was trained on them. Whoever gives no data trains on this. How data
is read and packed is minimind.data's. `tools` runs in worker processes and imports no PyTorch."""
