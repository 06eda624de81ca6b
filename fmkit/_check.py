"""How fmkit refuses what it is given: one kind of error, one sentence each."""


class Refused(ValueError):
    """An argument, a file or an answer that cannot be used; the message says why.

    Every error that fmkit raises about what it was given is one of these. The command
    ``fmkit`` prints their sentence; any other error is a bug, and shows its traceback.
    """


def require(condition: bool, name: str, rule: str, got: object) -> None:
    """Raise ``Refused("<name> must <rule>, got <got>.")`` unless `condition` holds."""
    if not condition:
        raise Refused(f"{name} must {rule}, got {got!r}.")


def one_line(error: BaseException) -> str:
    """Return the message of another library's error without its line breaks."""
    return " ".join(str(error).split())
