"""Sample quality: measures, feature classifiers and the matrix of `gms-fast evaluate`."""
