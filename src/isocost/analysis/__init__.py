"""DataFrame in, answer out: the cheapest way to good images, with intervals."""
