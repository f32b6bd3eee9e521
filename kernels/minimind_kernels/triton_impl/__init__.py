"""Holds the Triton functions. It is the only folder that imports triton, and each module does so
only when one of its functions is first called; it knows nothing of the package around it."""
