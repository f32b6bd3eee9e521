"""Holds the network: attention, feed-forward, experts and the decoder made of them, their cache,
and the files of a Hugging Face folder. It holds no adapters (minimind.lora), no training step
(minimind.engine) and no sampling (minimind.inference)."""
