"""Errors that a user can act on: one line that names what was given, what was expected and what to do."""


class RecycleError(Exception):
    """A failure of ours or of the machine; the command line ends with exit code 1."""

    exit_code = 1


class TextError(RecycleError):
    """An error of one text, which cannot go on; the model is fine, and other texts can."""


class NotFiniteError(RecycleError):
    """An error where a half's logits are not numbers, or infinite: no token can be chosen, and nothing measured."""


class OvertakenError(RecycleError):
    """An error for a generation into whose caches another text has been read, so that it cannot go on."""


class InputError(RecycleError):
    """A mistake of the user: a wrong path, option or file; the command line ends with exit code 2."""

    exit_code = 2
