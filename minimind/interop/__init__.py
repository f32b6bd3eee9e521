"""Converts models between MiniMind's files and those of other projects, and uses models that others
made. readers.py and writers.py list the formats, conversion.py joins the two; each other project's
package is imported on first use. Training and serving read their own folders by minimind.model and
minimind.lora instead."""
