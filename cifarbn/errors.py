"""The one exception that means: the user can mend this."""


class UserError(Exception):
    """A mistake of the user or of their machine; the message says what is wrong and names the remedy.

    Entry points print the message alone, without a traceback, and exit non-zero.
    """
