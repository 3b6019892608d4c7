"""The quality of samples: measures, a classifier to see digits through, and the matrix of `gms-fast evaluate`."""
