"""What every method is one of: a feature step, a head ranker, a graph ranker; and chains of them."""
