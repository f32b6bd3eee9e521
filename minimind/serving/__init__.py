"""Serves models over HTTP with OpenAI's API, through the batch engine. The clients of a
conversation, in the terminal and the browser, are in minimind.chat."""
