"""What makes the numbers of the README: python -m experiments --help."""

import os

SMOKE = os.environ.get("VAE_SMOKE") == "1"  # few images and epochs, into preview/smoke


class UserError(ValueError):
    """A mistake that whoever runs the command can mend, told in one line."""
