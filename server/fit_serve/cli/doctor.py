"""`fit-serve doctor`: what is installed, what is found, and what would be chosen."""


def doctor() -> None:
    """Say what is installed here and what the server would choose."""
