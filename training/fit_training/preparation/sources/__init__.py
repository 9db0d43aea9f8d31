"""Readers of labelled photographs, one a kind of container."""
