"""Uses models that other projects made. Each module imports the other project on first use. The
project's own model and adapter files are read by minimind.model and minimind.lora."""
