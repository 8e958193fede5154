"""Measures a bundle on this machine: steps, strategies, and what the one predicts for the other."""
