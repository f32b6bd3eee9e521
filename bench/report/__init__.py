"""Makes the tables and pictures of the documents from bench/results. Nothing is measured here."""
