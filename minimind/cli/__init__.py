"""Holds the `minimind` command: one file for each verb, with a `main(argv)` that reads flags, calls
the package and returns an exit status. Nothing is computed here, and nothing in the package imports
it; the scripts in launch/ are the same verbs from a checkout."""
