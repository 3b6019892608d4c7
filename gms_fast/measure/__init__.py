"""Measurements that solvers use: network statistics, data covariance, and their reach."""
