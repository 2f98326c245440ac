"""Software engineering as an evaluation: official rows, episodes as attempts, forms of patches."""
