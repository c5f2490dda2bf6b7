"""What makes the numbers of the README: python -m experiments --help."""


class UserError(ValueError):
    """A mistake that whoever runs the command can mend, told in one line."""
