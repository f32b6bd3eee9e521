"""Rehearses training on cards that are not here."""
