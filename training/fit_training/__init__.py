"""What `fit-serve train` and its sisters run."""
