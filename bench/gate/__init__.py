"""Tells whether a commit made anything slower or larger: it measures two commits in turns on one
machine."""
