"""What makes the numbers of the README: python -m experiments --help."""
