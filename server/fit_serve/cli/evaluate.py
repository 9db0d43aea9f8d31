"""`fit-serve evaluate`."""


def evaluate() -> None:
    """Measure the quality of a model."""
