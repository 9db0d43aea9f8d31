"""A request in, an image out."""
