"""What other projects made, used here: each module imports the other project on first use. The
project's own files are minimind.model's and minimind.lora's."""
