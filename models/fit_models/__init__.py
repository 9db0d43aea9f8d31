"""Networks and the mathematics of sampling: what is trained is what is served."""
