"""Measures the project: a folder for each question.

A folder's `python -m bench.FOLDER` writes JSON rows; bench/results keeps those of each machine, and
bench/report makes the documents' tables of them. Nothing here is part of the product.
"""
