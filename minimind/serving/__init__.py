"""An OpenAI-compatible server over the batch engine, and nothing else: a conversation's client,
in the terminal or the browser, is minimind.chat."""
