"""Estimators of what solvers take: of a network's curves, of mean and covariance of data, and how far those reach."""
