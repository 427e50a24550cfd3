"""What goes wrong for a reason that the user can mend."""


class Problem(Exception):
    """Something for the user to put right, told in a sentence."""
