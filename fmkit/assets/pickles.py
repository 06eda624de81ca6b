"""Read pickled arrays without running code: a pickle may name only parts of arrays."""

import gzip
import io
import pickle
import zlib
from pathlib import Path

import numpy as np

from fmkit.assets.places import AssetError

ADMITTED = {  # the names in a pickled array; numpy 2 moved the first to another module
    ("numpy.core.multiarray", "_reconstruct"): np._core.multiarray._reconstruct,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


def load_array(path: Path) -> np.ndarray:
    """Read the numpy array in a gzipped pickle.

    Raises ``AssetError`` if the file is damaged, if it names anything except the parts
    of an array of numbers, or if it holds something else.
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
    """Read a pickle that holds only numbers, texts, lists, dictionaries and arrays.

    `encoding` is the encoding of texts written by Python 2; "bytes" leaves them as
    bytes. Raises ``AssetError``, which calls the pickle `name`, if it is damaged or
    names anything else.
    """
    try:
        return _Unpickler(io.BytesIO(raw), encoding=encoding).load()
    except AssetError:
        raise
    except Exception as error:  # a broken pickle fails wherever its opcodes lead
        raise AssetError(f"{name} is no whole pickle ({error}).") from error


class _Unpickler(pickle.Unpickler):
    """An unpickler that refuses every name except those in ``ADMITTED``."""

    def find_class(self, module: str, name: str) -> object:
        if (module, name) not in ADMITTED:
            raise AssetError(f"the pickle names {module}.{name}, which is refused.")
        return ADMITTED[module, name]
