"""How good samples are: measures, a classifier to see digits through, and the matrix of `gms-fast evaluate`."""
