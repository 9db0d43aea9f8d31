"""What is trained on from a model that is there: for larger pictures, for fewer steps."""
