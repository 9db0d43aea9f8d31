"""How good pictures are: features, measures, reports."""
