"""The one exception that is meant for the person at the terminal."""


class LatxaError(Exception):
    """What is wrong, where (file:line or key) and how to mend it, in one sentence. The command line exits with status 2."""
