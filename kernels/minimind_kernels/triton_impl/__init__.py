"""The Triton functions. The only folder that imports triton, and each module of it alone when one
of its functions is first called; it knows nothing of the package around it."""
