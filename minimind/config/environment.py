"""Names the environment variables that a server and its clients share."""

KEY_VARIABLE = "MINIMIND_API_KEY"
"""A server's key, for itself and for its clients."""
SERVER_VARIABLE = "MINIMIND_SERVER"
"""The address of the server that the web page talks with."""
