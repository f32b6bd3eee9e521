"""Defines the `minimind` command: one file per verb, whose `main(argv)` reads flags, calls the
package and returns an exit status. Nothing is computed here, and nothing else in the package
imports it. The scripts in launch/ run the same verbs from a checkout."""
