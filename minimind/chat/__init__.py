"""Holds a conversation with a model in this process or behind a server, and shows it in the
terminal or on a web page. It serves nothing itself, and `minimind chat` needs none of the server's
packages."""
