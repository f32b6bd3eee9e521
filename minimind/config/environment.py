"""Names the environment variables that a server and its clients share."""

KEY_VARIABLE = "MINIMIND_API_KEY"
"""Holds the API key that a server asks for and its clients send."""
SERVER_VARIABLE = "MINIMIND_SERVER"
"""Holds the address of the server that the web page talks to."""
