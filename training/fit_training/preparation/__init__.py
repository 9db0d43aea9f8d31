"""Photographs become packed latents, once, before training."""
