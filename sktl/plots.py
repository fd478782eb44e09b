"""Plots in scikit-learn's manner: a Display keeps what is drawn, and ``plot`` draws it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from sktl._deps import import_extra

__all__ = ["LearningRateFinderDisplay", "StrategyComparisonDisplay"]

# Okabe and Ito's colours, which the colour-blind tell apart; the shapes of the marks differ besides.
_BLUE, _VERMILION, _GREY = "#0072B2", "#D55E00", "#8a8f94"
_NAME_WIDTH = 34  # letters; longer names are wrapped


class StrategyComparisonDisplay:
    """Ways of transfer compared: accuracy, or another score, with its spread, and the time that each took.

    Make one with :meth:`from_results` or :meth:`from_cv_results`.

    Parameters
    ----------
    names : sequence of str
        The ways of transfer.
    cv_mean, cv_std : array-like of shape (n,)
        Mean and standard deviation of the cross-validated score.
    test_score : array-like of shape (n,), default=None
        Score on the test images, which were set aside.
    seconds : array-like of shape (n,), default=None
        Time that each took.
    title : str, default=None
        Above the plot.
    metric : str, default="accuracy"
        Name of the score, written below its axis.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes
        One for the score and, where ``seconds`` is known and there is room, one for time.
    figure_ : matplotlib Figure
        The figure that they are in.

    See Also
    --------
    sklearn.model_selection.GridSearchCV : Its ``cv_results_`` can be drawn.

    Examples
    --------
    >>> from sktl.plots import StrategyComparisonDisplay
    >>> results = [
    ...     {"way": "lp_ft", "cv_accuracy": 0.97, "cv_std": 0.01, "test_accuracy": 0.98, "seconds": 31.0},
    ...     {"way": "from_scratch", "cv_accuracy": 0.91, "cv_std": 0.02, "test_accuracy": 0.90, "seconds": 30.0},
    ... ]
    >>> StrategyComparisonDisplay.from_results(results).names
    ['lp_ft', 'from_scratch']
    """

    def __init__(self, names, cv_mean, cv_std, *, test_score=None, seconds=None, title=None, metric="accuracy"):
        self.names = names
        self.cv_mean = cv_mean
        self.cv_std = cv_std
        self.test_score = test_score
        self.seconds = seconds
        self.title = title
        self.metric = metric

    @classmethod
    def from_results(cls, results, *, title=None):
        """Take over the rows of the table that ``sktl compare`` writes.

        Parameters
        ----------
        results : sequence of dict, or DataFrame of pandas or polars
            Rows with "way", "cv_accuracy" and "cv_std" and, if known, "test_accuracy" and "seconds".
        title : str, default=None
            Above the plot.

        Returns
        -------
        display : StrategyComparisonDisplay
            Nothing is drawn yet.
        """
        rows = _rows_of(results)
        if not rows:
            raise ValueError("results holds no rows; at least one is needed.")
        columns = {name: [row[name] for row in rows] for name in rows[0]}
        return cls(
            [str(name) for name in columns["way"]],
            columns["cv_accuracy"],
            columns["cv_std"],
            test_score=columns.get("test_accuracy"),
            seconds=columns.get("seconds"),
            title=title,
        )

    @classmethod
    def from_cv_results(cls, cv_results, *, param="strategy", metric="score", title=None):
        """Take over the outcome of a grid search over ``strategy``.

        Parameters
        ----------
        cv_results : dict
            The ``cv_results_`` of a fitted :class:`~sklearn.model_selection.GridSearchCV`.
        param : str, default="strategy"
            The parameter whose values name the ways, as in the grid. Where a value was tried with several settings of
            other parameters, those are named too.
        metric : str, default="score"
            The score to draw; a search by several metrics, as with :func:`sktl.search_costs`, calls them by their
            names in ``scoring``.
        title : str, default=None
            Above the plot.

        Returns
        -------
        display : StrategyComparisonDisplay
            Nothing is drawn yet. Its seconds are the mean time of a fit; that of the first candidate includes the time
            for the embeddings, which are computed once in a search.

        Raises
        ------
        ValueError
            If that parameter was not searched, or there is no such metric; names those that there are.
        """
        return cls(
            _names(cv_results, param),
            _column(cv_results, "metric", "mean_test_", metric),
            cv_results[f"std_test_{metric}"],
            seconds=cv_results["mean_fit_time"],
            title=title,
            metric=metric,
        )

    def plot(self, ax=None):
        """Draw the best way at the top.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw the score alone; None makes a figure with time beside it. Make its figure with
            ``layout="constrained"``, or the names of the ways may lie outside.

        Returns
        -------
        display : StrategyComparisonDisplay
            With ``axes_`` and ``figure_``.
        """
        if ax is not None:
            return self._draw([ax])
        pyplot = import_extra("matplotlib.pyplot", extra="plots", caller="StrategyComparisonDisplay.plot")
        return self._draw_on(pyplot.figure(**self._figure_options()))

    def save(self, path, *, format=None, dpi=150):
        """Draw on a figure of its own, and write it to a file; no window, no state of pyplot.

        Parameters
        ----------
        path : path-like
            The file.
        format : str, default=None
            A format that matplotlib writes; None takes the ending of the file's name, and PNG where it has none.
        dpi : int, default=150
            Pixels per inch.
        """
        figure = import_extra("matplotlib.figure", extra="plots", caller="StrategyComparisonDisplay.save").Figure
        path = Path(path)
        format = format or path.suffix.removeprefix(".") or "png"
        self._draw_on(figure(**self._figure_options())).figure_.savefig(path, format=format, dpi=dpi)

    def _figure_options(self) -> dict[str, Any]:
        return {"figsize": (9.5, 1.9 + 0.42 * len(self.names)), "layout": "constrained"}

    def _draw_on(self, figure):
        if self.seconds is None:
            axes = [figure.subplots()]
        else:
            axes = figure.subplots(1, 2, sharey=True, gridspec_kw={"width_ratios": [2.6, 1]})
        if self.title:
            figure.suptitle(self.title, x=0.01, ha="left", fontsize=12, fontweight="bold")
        return self._draw(axes)

    def _draw(self, axes):
        order = np.argsort(-np.asarray(self.cv_mean, dtype=float), kind="stable")
        self._draw_scores(axes[0], order)
        for ax in axes[1:]:
            self._draw_seconds(ax, order)
        if len(axes) == 1 and self.title and axes[0].figure.get_suptitle() == "":
            axes[0].set_title(self.title)
        self.axes_ = np.asarray(axes, dtype=object)
        self.figure_ = axes[0].figure
        return self

    def _draw_scores(self, ax, order) -> None:
        mean, std = (np.asarray(values, dtype=float)[order] for values in (self.cv_mean, self.cv_std))
        places = np.arange(len(order))
        ax.errorbar(
            mean,
            places,
            xerr=std,
            fmt="o",
            color=_BLUE,
            markersize=7,
            capsize=4,
            label="cross-validation, mean ± std",
            zorder=3,
        )
        if self.test_score is not None:
            test = np.asarray(self.test_score, dtype=float)[order]
            ax.plot(test, places + 0.22, "D", color=_VERMILION, markersize=5.5, label="test", zorder=3)
        for place, value, spread in zip(places, mean, std, strict=True):
            ax.text(
                1.01, place, f"{value:.3f} ± {spread:.3f}", transform=ax.get_yaxis_transform(), va="center", fontsize=9
            )
        ax.set_yticks(places, [fill(self.names[index], _NAME_WIDTH) for index in order])
        ax.get_yticklabels()[0].set_fontweight("bold")
        ax.set_ylim(len(order) - 0.5, -0.5)
        ax.margins(x=0.06)
        ax.set_xlabel(self.metric)
        handles, labels = ax.get_legend_handles_labels()  # matplotlib puts points with error bars last
        place = {"loc": "lower left", "bbox_to_anchor": (0, 1), "borderaxespad": 0.2}
        ax.legend(handles[::-1], labels[::-1], ncols=2, frameon=False, **place)
        _tidy(ax, grid="x")

    def _draw_seconds(self, ax, order) -> None:
        seconds = np.asarray(self.seconds, dtype=float)[order]
        bars = ax.barh(np.arange(len(order)), seconds, height=0.5, color=_GREY)
        ax.bar_label(
            bars, [f"{value:.1f}" if value < 100 else f"{value:,.0f}" for value in seconds], padding=4, fontsize=9
        )
        ax.margins(x=0.24)
        ax.set_xlabel("seconds")
        ax.tick_params(axis="y", labelleft=False)
        _tidy(ax)


class LearningRateFinderDisplay:
    """The loss at each learning rate that was tried by ``learning_rate="auto"``.

    Make one with :meth:`from_estimator`.

    Parameters
    ----------
    learning_rates, losses, smoothed_losses : array-like of shape (n_steps,)
        Learning rate, loss and smoothed loss of each step.
    chosen : float
        The learning rate that was chosen.

    Attributes
    ----------
    ax_ : matplotlib Axes
        Where it is drawn.
    figure_ : matplotlib Figure
        The figure that it is in.

    Examples
    --------
    >>> from sktl.plots import LearningRateFinderDisplay
    >>> display = LearningRateFinderDisplay([1e-4, 1e-3, 1e-2], [2.0, 1.0, 3.0], [2.0, 1.5, 2.2], 1e-4)
    >>> display.chosen
    0.0001
    """

    def __init__(self, learning_rates, losses, smoothed_losses, chosen):
        self.learning_rates = learning_rates
        self.losses = losses
        self.smoothed_losses = smoothed_losses
        self.chosen = chosen

    @classmethod
    def from_estimator(cls, estimator, *, ax=None):
        """Draw the test of an estimator that was fitted with ``learning_rate="auto"``.

        Parameters
        ----------
        estimator : FineTuneClassifier or FineTuneRegressor
            Fitted.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : LearningRateFinderDisplay
            With ``ax_`` and ``figure_``.
        """
        if not hasattr(estimator, "lr_curve_"):
            raise ValueError(
                f"This {type(estimator).__name__} holds no test of learning rates: fit it with learning_rate='auto', "
                "and a strategy that trains the backbone."
            )
        curve = estimator.lr_curve_
        values = curve["learning_rate"], curve["loss"], curve["smoothed_loss"]
        return cls(*values, estimator.learning_rate_).plot(ax=ax)

    def plot(self, ax=None):
        """Draw the loss of each step over its learning rate.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a figure.

        Returns
        -------
        display : LearningRateFinderDisplay
            With ``ax_`` and ``figure_``.
        """
        if ax is None:
            pyplot = import_extra("matplotlib.pyplot", extra="plots", caller="LearningRateFinderDisplay.plot")
            ax = pyplot.figure(figsize=(6.4, 3.8), layout="constrained").subplots()
        ax.plot(self.learning_rates, self.losses, ".", color=_GREY, markersize=4, label="loss of a step")
        ax.plot(self.learning_rates, self.smoothed_losses, color=_BLUE, linewidth=2, label="smoothed")
        ax.axvline(self.chosen, color=_VERMILION, linestyle="--", label=f"chosen: {self.chosen:.2g}")
        ax.set_xscale("log")
        ax.set_xlabel("learning rate of the head")
        ax.set_ylabel("training loss")
        ax.set_ylim(0, 1.6 * max(self.smoothed_losses[0], min(self.smoothed_losses)))
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, frameon=False, borderaxespad=0.2)
        _tidy(ax, grid="y")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _rows_of(results) -> Sequence[Mapping[str, Any]]:
    """Return the rows of a table as dicts."""
    if hasattr(results, "to_dicts"):  # polars
        return results.to_dicts()
    return results.to_dict("records") if hasattr(results, "to_dict") else list(results)


def _names(cv_results: Mapping[str, Any], param: str) -> list[str]:
    """Name the candidates by a parameter's value, and by the others where that alone does not tell them apart."""
    names = [str(value) for value in _column(cv_results, "param", "param_", param)]
    if len(set(names)) == len(names):
        return names
    others = ({key: value for key, value in params.items() if key != param} for params in cv_results["params"])
    return [
        ", ".join([name, *(f"{key}={value}" for key, value in other.items())])
        for name, other in zip(names, others, strict=True)
    ]


def _column(cv_results: Mapping[str, Any], parameter: str, prefix: str, name: str):
    """Return a column of ``cv_results_``; ``parameter`` is what chose it."""
    if prefix + name not in cv_results:
        there = [repr(column.removeprefix(prefix)) for column in cv_results if column.startswith(prefix)]
        raise ValueError(
            f"cv_results has no {prefix + name!r}: the {parameter!r} parameter must be one of {', '.join(there)}, "
            f"got {name!r} instead."
        )
    return cv_results[prefix + name]


def _tidy(ax, grid: str | None = None) -> None:
    ax.spines[["top", "right", "left"]].set_visible(False)
    ax.tick_params(axis="y", length=0)
    ax.set_axisbelow(True)
    if grid:
        ax.grid(axis=grid, color="#dddddd", linewidth=0.8)
