"""From a text to the tokens that an encoder reads."""

import hashlib
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np

from sktl._deps import import_extra

PADDING = -1
# Rows of tokens are padded to the next of these lengths (or the encoder's limit): few, so that batches fill up, and
# close, so that little is computed for nothing.
_LENGTHS = (8, 12, 16, 24, 32, 40, 48, 64, 80, 96, 128, 160, 192, 256, 320, 384, 512, 768, 1024, 2048, 4096, 8192)
# A longer text is cut before it is tokenised, unless what is left gives too few tokens; but no text is read further
# than the last of these.
_CHARACTERS_PER_TOKEN, _MAX_CHARACTERS = 32, 2**19


class Tokens(NamedTuple):
    """The tokens of one text.

    Attributes
    ----------
    ids : ndarray of int32 of shape (length,)
        Padded with ``PADDING`` to a length that depends on the text alone.
    is_truncated : bool
        Whether the text had more tokens than are kept.
    """

    ids: np.ndarray
    is_truncated: bool


class Tokenizer:
    """The tokens of texts, one text at a time and from any thread.

    Parameters
    ----------
    definition : str
        The JSON of the ``tokenizers`` library.
    max_length : int
        Most tokens of a text, special ones included; what comes after them is cut off.
    prompt : str, default=""
        Put before each text.
    lowercase : bool, default=False
        Whether to write texts in small letters first.
    """

    def __init__(self, definition: str, max_length: int, prompt: str = "", lowercase: bool = False):
        self._definition = definition
        self.max_length = max_length
        self._prompt = prompt
        self._lowercase = lowercase

    def __call__(self, text: str) -> Tokens:
        """Tokenise a text of any length.

        Parameters
        ----------
        text : str
            Without lone surrogates.

        Returns
        -------
        tokens : Tokens
            Padded; of ``max_length`` at most.
        """
        text = self._prompt + (text.lower() if self._lowercase else text)
        encoding, is_truncated = self._encode(text)
        ids = np.full(padded_length(len(encoding.ids), self.max_length), PADDING, dtype=np.int32)
        ids[: len(encoding.ids)] = encoding.ids
        return Tokens(ids, is_truncated)

    def _encode(self, text: str):
        """Tokenise no more of a text than it takes: millions of letters would take seconds and gigabytes."""
        n_characters = self.max_length * _CHARACTERS_PER_TOKEN
        while len(text) > n_characters:
            encoding = self._backend.encode(text[:n_characters])
            # Near the cut tokens may differ from those of the whole text: it must be well behind the last one kept.
            n_more = sum(len(more.ids) for more in encoding.overflowing)
            if n_more > self.max_length // 4 or n_characters >= _MAX_CHARACTERS:
                return encoding, True
            n_characters *= 4
        encoding = self._backend.encode(text)
        return encoding, bool(encoding.overflowing)

    @cached_property
    def _backend(self):
        tokenizers = import_extra("tokenizers", extra="text", caller="A text backbone")
        backend = tokenizers.Tokenizer.from_str(self._definition)
        backend.no_padding()
        backend.enable_truncation(self.max_length)
        return backend

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_backend"}


def padded_length(n_tokens: int, max_length: int) -> int:
    """Return the length that a row of so many tokens is padded to."""
    return min(next((length for length in _LENGTHS if length >= n_tokens), max_length), max_length)


def tokens_config(definition: str, vocabulary: int, **settings: Any) -> dict[str, Any]:
    """Return the data config of a text backbone: how texts become its input, as plain values.

    Parameters
    ----------
    definition : str
        The tokenizer's JSON, of which the config holds a hash.
    vocabulary : int
        How many tokens there are.
    **settings : dict
        Arguments of :class:`Tokenizer`.
    """
    digest = hashlib.sha256(definition.encode()).hexdigest()
    return {"input": "texts", "tokenizer": digest, "vocabulary": vocabulary, "lengths": list(_LENGTHS), **settings}


def takes_texts(data_config: dict[str, Any]) -> bool:
    """Say whether a data config is a text backbone's."""
    return data_config.get("input") == "texts"
