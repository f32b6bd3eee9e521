"""Generates text from a prompt: sampling, the batch engine and its scheduler, answers constrained
by a grammar, and the parsing of answers. It opens no connection (minimind.serving) and keeps no
conversation (minimind.chat)."""
