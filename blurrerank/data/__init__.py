"""The values that everything else passes on: features with their labels, lists, rankings."""
