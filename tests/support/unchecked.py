"""A module whose signatures are not checked, as outside pytest."""

import importlib.util
import sys
from types import ModuleType


def unchecked(module: ModuleType) -> ModuleType:
    """Return a second copy of a module, without the checks of shapes.

    torch's compiler cannot see through them, and no user has them.
    """
    name = f"unchecked.{module.__name__}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, module.__file__)
        sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules[name])
    return sys.modules[name]
