"""Holds a conversation with a model in this process or with a server: its turns, the terminal and
the web page. It serves nothing itself, and `minimind chat` needs none of the server's packages."""
