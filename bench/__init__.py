"""Measures the project, in a folder for each question.

`python -m bench.FOLDER` writes JSON rows; bench/results holds the rows of each machine, and
bench/report makes the documents' tables from them. Nothing here is part of the product.
"""

import minimind  # noqa: F401  (says how OpenMP's threads wait, before PyTorch is imported)
