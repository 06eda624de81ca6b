"""The one way to say that an argument is wrong."""


def require(condition: bool, name: str, rule: str, got: object) -> None:
    """Raise ``ValueError("<name> must <rule>, got <got>.")`` unless it holds."""
    if not condition:
        raise ValueError(f"{name} must {rule}, got {got!r}.")
