"""Pickles that may name nothing but what an array of numbers is made of."""

import gzip
import io
import pickle
import zlib
from pathlib import Path

import numpy as np

from fmkit.assets.places import AssetError

ADMITTED = {  # what a pickled array names; numpy 2 renamed the first one's module
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def load_array(path: Path) -> np.ndarray:
    """The one numpy array in a gzipped pickle, which may name nothing else.

    Raises ``AssetError`` for a file that is damaged, that names anything but what an
    array of numbers is made of, or that holds something else.
    """
    try:
        whole = gzip.decompress(path.read_bytes())  # to its end, where its checksum is
    except (OSError, EOFError, zlib.error) as error:
        raise AssetError(f"{path} is no whole gzipped pickle ({error}).") from error
    array = unpickle(whole, name=str(path))
    if not isinstance(array, np.ndarray) or array.dtype.hasobject:
        raise AssetError(f"{path} must hold an array of numbers.")
    return array


def unpickle(raw: bytes, *, name: str, encoding: str = "ASCII") -> object:
    """What a pickle holds: numbers, texts, lists, dictionaries, arrays and no more.

    `encoding` is that of texts that Python 2 wrote; "bytes" leaves them as they are.
    Raises ``AssetError``, which calls the pickle `name`.
    """
    try:
        return _Unpickler(io.BytesIO(raw), encoding=encoding).load()
    except AssetError:
        raise
    except Exception as error:  # a broken pickle fails wherever its opcodes lead
        raise AssetError(f"{name} is no whole pickle ({error}).") from error


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise AssetError(f"the pickle names {module}.{name}, which is refused.")
        return ADMITTED[module, name]
