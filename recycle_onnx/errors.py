"""Errors that a user can act on: one line that names what was given, what was expected and what to do."""


class RecycleError(Exception):
    """A failure of ours or of the machine; the command line ends with exit code 1."""

    exit_code = 1


class TextError(RecycleError):
    """This text cannot go on; the model is fine, and others can."""


class NotFiniteError(RecycleError):
    """A half's logits are not numbers, or infinite: no token can be chosen, and nothing measured."""


class OvertakenError(RecycleError):
    """Another text has been read into the caches of a generation, which cannot go on."""


class InputError(RecycleError):
    """The user's mistake: a wrong path, option or file; the command line ends with exit code 2."""

    exit_code = 2
