"""
Which way of transfer?
======================

Which weights of a pretrained network should change? One search over one parameter of one classifier tells. The
handwritten digits of scikit-learn are the new task, ``"sktl/tiny"`` is the pretrained network.
:doc:`/user_guide/which_way` explains the ways.
"""

# %%
# Very few images: six per class to learn from, and 400 to test on.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
images = (digits.images * 255 / 16).astype("uint8")[..., None]
X, X_test, y, y_test = train_test_split(
    images,
    digits.target,
    train_size=60,
    test_size=400,
    stratify=digits.target,
    random_state=0,
)

# %%
# The search
# ----------
#
# ``strategy`` is searched like any other parameter. ``"from_scratch"`` is the control: the same network without its
# pretrained weights. Images of 32 pixels are large enough for digits, and need a quarter of the work.

import pandas as pd
from sklearn.model_selection import GridSearchCV

from sktl import FineTuneClassifier

strategies = ["feature_extraction", "lp_ft", "partial", "fine_tuning", "from_scratch"]
search = GridSearchCV(
    FineTuneClassifier("sktl/tiny", image_size=32, random_state=0),
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
# The bars show the mean over the folds, the whiskers the standard deviation, the numbers the seconds per fit.

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
results = results.sort_values("mean_test_score")
ax.barh(results.index, results["mean_test_score"], xerr=results["std_test_score"], capsize=4)
for strategy, row in results.iterrows():
    ax.text(0.01, strategy, f"{row['mean_fit_time']:.1f} s", va="center", color="white")
ax.set(xlim=(0, 1), xlabel="cross-validated accuracy")
plt.show()

# %%
# The winner
# ----------
#
# The search has fitted the best strategy on all 60 images. So few images cannot separate strategies that are close, but
# they show what the pretrained weights are worth. With a thousand images the control catches up: then the digits
# themselves teach the network what it needs.

print(search.best_params_["strategy"], f"{search.score(X_test, y_test):.3f}")

# %%
# The errors are worth a look. The title of each digit gives its label and what it was taken for.

predicted = search.predict(X_test)
wrong = (predicted != y_test).nonzero()[0][:8]
fig, axes = plt.subplots(1, 8, figsize=(8, 1.6), layout="constrained")
for ax in axes:
    ax.axis("off")
for ax, row in zip(axes, wrong, strict=False):
    ax.imshow(X_test[row], cmap="gray_r")
    ax.set_title(f"{y_test[row]}, taken for {predicted[row]}", fontsize=8)
plt.show()
