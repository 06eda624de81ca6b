"""The message of a refusal. Its form is checked by the fixture ``refusals``."""

from collections.abc import Callable

import pytest

from fmkit._check import Refused


def refused(call: Callable, *arguments: object) -> str:
    """Return why ``call(*arguments)`` is refused."""
    with pytest.raises(Refused) as error:
        call(*arguments)
    return str(error.value)
