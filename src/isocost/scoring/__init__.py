"""How good the images are: features of fixed networks, statistics of features, and metrics with their errors."""
