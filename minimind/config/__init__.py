"""Options and where they come from: a model's configuration and presets, a stage's recipe, the
DeepSpeed JSON and its checks. Plain values: nothing here builds a model, reads data or imports
PyTorch's distributed parts; minimind.run puts options together."""
