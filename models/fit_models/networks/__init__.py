"""One readable file per family of networks."""
