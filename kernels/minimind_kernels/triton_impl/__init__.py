"""The Triton bodies and their launchers: the only folder that imports triton."""
