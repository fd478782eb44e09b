"""Strategies that keep the whole backbone."""

from numbers import Real
from typing import ClassVar

from sklearn.utils._param_validation import Interval

from sktl.strategies.base import Strategy


class FeatureExtraction(Strategy):
    """Keep the backbone, fit a new linear head on its embeddings.

    The head is a multinomial logistic regression on standardised embeddings, solved to convergence, and in regression a
    ridge regression with ``alpha = 4 / C``; each image goes through the backbone once. Also known as linear probing.

    Parameters
    ----------
    C : float, default=10.0
        Inverse strength of the head's L2 penalty, as in :class:`~sklearn.linear_model.LogisticRegression`. It acts on
        embeddings that are standardised and divided by the square root of their width, so that it means the same for
        every backbone.

    See Also
    --------
    LinearProbeThenFineTuning : Goes on from here.

    References
    ----------
    Kornblith, S., Shlens, J., Le, Q. V.: Do Better ImageNet Models Transfer Better? CVPR 2019.

    Examples
    --------
    >>> from sktl import FineTuneClassifier
    >>> from sktl.strategies import FeatureExtraction
    >>> FineTuneClassifier(strategy=FeatureExtraction(C=1.0))
    FineTuneClassifier(strategy=FeatureExtraction(C=1.0))
    """

    trains_backbone = False
    fits_head_first = True

    _parameter_constraints: ClassVar[dict] = {"C": [Interval(Real, 0, None, closed="neither")]}

    def __init__(self, C: float = 10.0):
        self.C = C
