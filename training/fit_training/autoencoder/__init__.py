"""A small autoencoder of our own, taught by a large one."""
