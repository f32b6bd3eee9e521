"""Tables and pictures of the documents, made from bench/results. Nothing is measured here."""
