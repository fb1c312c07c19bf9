"""How the work is cut and carried out: one run from features to lists."""
