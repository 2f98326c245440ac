"""Who acts in an episode: texts in, one turn out."""
