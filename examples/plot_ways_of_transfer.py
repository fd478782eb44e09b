"""
Which way of transfer?
======================

One classifier, one parameter, one search: which weights of a pretrained network should move? The handwritten digits of
scikit-learn play the new task, ``"sktl/tiny"`` is the pretrained network. :doc:`/user_guide/which_way` explains the
ways.
"""

# %%
# Few images: 15 per class to learn from, and 400 to test on.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
images = (digits.images * 255 / 16).astype("uint8")[..., None]
X, X_test, y, y_test = train_test_split(
    images, digits.target, train_size=150, test_size=400, stratify=digits.target, random_state=0
)

# %%
# The search
# ----------
#
# ``strategy`` is searched like any other parameter. ``"from_scratch"`` is the control: the same network without its
# pretrained weights.

import pandas as pd
from sklearn.model_selection import GridSearchCV

from sktl import FineTuneClassifier

strategies = ["feature_extraction", "lp_ft", "partial", "fine_tuning", "from_scratch"]
search = GridSearchCV(
    FineTuneClassifier("sktl/tiny", max_epochs=5, random_state=0),
    {"strategy": strategies},
    cv=3,
)
search.fit(X, y)
results = pd.DataFrame(search.cv_results_).set_index("param_strategy")
results[["mean_test_score", "std_test_score", "mean_fit_time"]].round(3)

# %%
# The picture
# -----------
#
# Accuracy against time. What lies higher is better, what lies to the left is cheaper.

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for strategy, row in results.iterrows():
    ax.errorbar(row["mean_fit_time"], row["mean_test_score"], yerr=row["std_test_score"], marker="o", capsize=4)
    ax.annotate(strategy, (row["mean_fit_time"], row["mean_test_score"]), xytext=(8, 4), textcoords="offset points")
ax.set(xscale="log", xlabel="seconds per fit", ylabel="cross-validated accuracy")
ax.margins(x=0.25)
plt.show()

# %%
# The winner
# ----------
#
# The search has fitted the best strategy on all training images.

print(search.best_params_["strategy"], f"{search.score(X_test, y_test):.3f}")

# %%
# What it gets wrong is worth a look.

predicted = search.predict(X_test)
wrong = (predicted != y_test).nonzero()[0][:8]
fig, axes = plt.subplots(1, 8, figsize=(8, 1.6), layout="constrained")
for ax in axes:
    ax.axis("off")
for ax, row in zip(axes, wrong, strict=False):
    ax.imshow(X_test[row], cmap="gray_r")
    ax.set_title(f"{y_test[row]}, not {predicted[row]}", fontsize=8)
plt.show()
