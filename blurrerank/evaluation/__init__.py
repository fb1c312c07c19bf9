"""Protocols, where the matches stand, metrics, and significance."""
