"""Simple statistics of texts, to stand beside embeddings."""

import re
from collections.abc import Callable
from typing import ClassVar, NamedTuple

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin, _fit_context
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.validation import _check_feature_names

from sktl.exceptions import BadRow
from sktl.inputs import RowError, find_texts, item_of, raise_bad_rows, read_text

_WORD = re.compile(r"\w+(?:['’\-]\w+)*")
_SENTENCE_END = re.compile(r"[.!?…。！？]+(?=\s|$|[\"'”’)\]])")
_PUNCTUATION = re.compile(r"[^\w\s]|_")


class _Counts(NamedTuple):
    """What the statistics of one text are computed from."""

    text: str
    words: list[str]
    n_sentences: int
    n_letters: int
    n_capitals: int


def _count(text: str) -> _Counts:
    words = _WORD.findall(text)
    letters = [letter for letter in text if letter.isalpha()]
    n_sentences = max(len(_SENTENCE_END.findall(text)), 1 if words else 0)
    return _Counts(text, words, n_sentences, len(letters), sum(letter.isupper() for letter in letters))


def _ratio(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _share_of_words(counts: _Counts, is_counted: Callable[[str], bool]) -> float:
    return _ratio(sum(map(is_counted, counts.words)), len(counts.words))


_STATISTICS: dict[str, Callable[[_Counts], float]] = {
    "n_characters": lambda counts: len(counts.text),
    "n_words": lambda counts: len(counts.words),
    "n_sentences": lambda counts: counts.n_sentences,
    "n_exclamation_marks": lambda counts: counts.text.count("!"),
    "n_question_marks": lambda counts: counts.text.count("?"),
    "mean_word_length": lambda counts: _ratio(sum(map(len, counts.words)), len(counts.words)),
    "mean_sentence_length": lambda counts: _ratio(len(counts.words), counts.n_sentences),
    "share_unique_words": lambda counts: _ratio(len({word.lower() for word in counts.words}), len(counts.words)),
    "share_capitals": lambda counts: _ratio(counts.n_capitals, counts.n_letters),
    "share_capital_words": lambda counts: _share_of_words(counts, lambda word: len(word) > 1 and word.isupper()),
    "share_digits": lambda counts: _ratio(sum(map(str.isdigit, counts.text)), len(counts.text)),
    "share_punctuation": lambda counts: _ratio(len(_PUNCTUATION.findall(counts.text)), len(counts.text)),
}


class TextStatistics(TransformerMixin, BaseEstimator):
    """Turn texts into simple counts: length, words, capitals, digits, punctuation.

    They know nothing of meaning and cost next to nothing, but capture some things that embeddings capture badly. Beside
    the embeddings of a :class:`PretrainedFeatureTransformer` they are additional inputs for a classic model, in a
    :class:`~sklearn.compose.ColumnTransformer` or a :class:`~sklearn.pipeline.FeatureUnion`.

    Parameters
    ----------
    statistics : "all" or list of str, default="all"
        Which statistics to compute. "all" is, in this order, ``n_characters``, ``n_words``, ``n_sentences``,
        ``n_exclamation_marks``, ``n_question_marks``, ``mean_word_length``, ``mean_sentence_length`` (in words),
        ``share_unique_words``, ``share_capitals`` (of the letters), ``share_capital_words`` (words all in capitals),
        ``share_digits`` and ``share_punctuation`` (of the characters). A list names some, in any order.
    on_error : {"raise", "nan"}, default="raise"
        What happens to rows that are not texts (missing values, numbers) or that cannot be read from X: they raise one
        error that names them all, or become rows of NaN. An empty text is a text: all its statistics are 0.

    Attributes
    ----------
    n_features_in_ : int
        1, where X was a frame.
    feature_names_in_ : ndarray of str
        Name of the column of X, where it was a frame.

    See Also
    --------
    PretrainedFeatureTransformer : Embeddings of texts.

    Notes
    -----
    A word is a run of letters, digits and underscores, apostrophes and hyphens inside it included; texts in scripts
    without spaces have few of them. There is nothing to learn from X: ``transform`` works without ``fit``.

    Examples
    --------
    >>> from sktl import TextStatistics
    >>> statistics = TextStatistics(["n_words", "mean_word_length", "share_capitals"])
    >>> statistics.fit_transform(["What a film!", "DULL"])
    array([[3.        , 3.        , 0.11111111],
           [1.        , 4.        , 1.        ]])
    >>> statistics.get_feature_names_out()
    array(['n_words', 'mean_word_length', 'share_capitals'], dtype=object)
    """

    _parameter_constraints: ClassVar[dict] = {
        "statistics": [StrOptions({"all"}), list, tuple],
        "on_error": [StrOptions({"raise", "nan"})],
    }

    def __init__(self, statistics="all", *, on_error="raise"):
        self.statistics = statistics
        self.on_error = on_error

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X, y=None):
        """Check parameters and X; there is nothing to learn.

        Parameters
        ----------
        X : sequence of texts
            In a list, array or column, or a frame of one column.
        y : ignored
            Present for the sake of Pipelines.

        Returns
        -------
        self : TextStatistics
            The same object.
        """
        self._names()
        self._find_texts(X, reset=True)
        return self

    def transform(self, X) -> np.ndarray:
        """Compute the statistics.

        Parameters
        ----------
        X : sequence of texts
            In a list, array or column, or a frame of one column.

        Returns
        -------
        statistics : ndarray of shape (n, n_statistics), float64
            One row per text.

        Raises
        ------
        InputError
            If rows are not texts, or cannot be read from X, and ``on_error="raise"``.
        ValueError
            If a parameter has a value that is not allowed.
        """
        computed = [_STATISTICS[name] for name in self._names()]
        texts = self._find_texts(X, reset=False)
        result = np.full((len(texts), len(computed)), np.nan)
        bad = []
        for index in range(len(texts)):
            try:
                counts = _count(read_text(item_of(texts, index), blank=True))
            except RowError as error:
                bad.append(BadRow(index, f"row {index}", str(error)))
                continue
            result[index] = [compute(counts) for compute in computed]
        if bad and self.on_error == "raise":
            raise_bad_rows(bad, len(texts))
        return result

    def get_feature_names_out(self, input_features=None) -> np.ndarray:
        """Return the names of the statistics.

        Parameters
        ----------
        input_features : ignored
            Present for the sake of Pipelines.

        Returns
        -------
        names : ndarray of str, dtype object
            In the order of the columns.
        """
        return np.array(self._names(), dtype=object)

    def _names(self) -> list[str]:
        self._validate_params()  # transform works without fit
        if isinstance(self.statistics, str):
            return list(_STATISTICS)
        unknown = [name for name in self.statistics if name not in _STATISTICS]
        if unknown or not self.statistics:
            got = f"{unknown[0]!r} in it" if unknown else "an empty list"
            raise ValueError(
                f"The 'statistics' parameter of {type(self).__name__} must be 'all' or hold names from "
                f"{list(_STATISTICS)}, got {got} instead."
            )
        return list(self.statistics)

    def _find_texts(self, X, reset: bool):
        texts = find_texts(X)
        if reset:
            for attribute in ("n_features_in_", "feature_names_in_"):
                self.__dict__.pop(attribute, None)
        if hasattr(X, "columns") and (reset or hasattr(self, "feature_names_in_")):
            _check_feature_names(self, X, reset=reset)
            self.n_features_in_ = 1
        return texts

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        tags.input_tags.one_d_array = True
        tags.input_tags.two_d_array = False
        tags.requires_fit = False
        return tags
