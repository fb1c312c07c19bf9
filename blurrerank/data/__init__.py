"""Validated data objects: feature sets with labels, candidate lists, rankings."""
