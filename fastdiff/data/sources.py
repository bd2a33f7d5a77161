"""The kinds of data there are. A new one is a file beside this one that ends with its entry, and its name here."""

from __future__ import annotations

from fastdiff.data import archive, cifar, fashion, idx, npy, npz, pictures
from fastdiff.data.source import Source

# The first that recognises a name or path reads it.
SOURCES: tuple[Source, ...] = (
    *(fashion.SOURCE, npy.SOURCE, npz.SOURCE, idx.SOURCE, cifar.SOURCE, archive.SOURCE),
    pictures.SOURCE,  # any folder with pictures in it
)


def accepted(option: str | None = None) -> str:
    """What users can give as data, in words: all sources, or those that take an option."""
    words = [source.accepts for source in SOURCES if option is None or option in source.options]
    return " or ".join([", ".join(words[:-1]), words[-1]] if words[1:] else words)
