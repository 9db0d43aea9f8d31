"""`python -m fit_serve` is the `fit-serve` command."""

from fit_serve.cli import main

if __name__ == "__main__":
    main()
