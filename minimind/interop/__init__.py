"""Uses models that other projects made. Each module imports the other project on first use. Files
of MiniMind's own models and adapters are read by minimind.model and minimind.lora instead."""
