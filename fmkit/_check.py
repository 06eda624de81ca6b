"""Refuse arguments and files that cannot be used: one error, one sentence each."""


class Refused(ValueError):
    """An argument, a file or an answer cannot be used; the message says why.

    Every error that fmkit raises about its input is a Refused. The command ``fmkit``
    prints the sentence of a Refused; any other error is a bug and shows its traceback.
    """


def require(condition: bool, name: str, rule: str, got: object) -> None:
    """Raise ``Refused("<name> must <rule>, got <got>.")`` if `condition` is false."""
    if not condition:
        raise Refused(f"{name} must {rule}, got {got!r}.")


def one_line(error: BaseException) -> str:
    """Return the message of another library's error without its line breaks."""
    return " ".join(str(error).split())
