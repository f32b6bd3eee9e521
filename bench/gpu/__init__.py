"""What is run on a machine with a GPU, in parts of minutes: tests first, then every benchmark."""
