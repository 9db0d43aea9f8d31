"""Weights as their authors released them: what a file is, what is in it, and bundles of it."""
