"""Defines the network (attention, feed-forward, experts and the transformer made of them), its
key/value cache, and the files of a Hugging Face folder. Adapters are in minimind.lora, training
steps in minimind.engine, sampling in minimind.inference."""
