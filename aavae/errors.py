"""Errors a person can act on."""


class UserError(Exception):
    """What the user asked for cannot be done; the message is one sentence that says why and what would work.

    Entry points print it and exit with code 2, without a traceback.
    """
