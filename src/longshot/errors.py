"""The one exception that means: the input is at fault, and a person can put it right."""


class UserError(ValueError):
    """Bad input from a person: one clear line that names the file or shot, what is wrong and what to do.

    The command line prints the message and leaves with exit code 2. Anything else that escapes is a bug in longshot.
    """
