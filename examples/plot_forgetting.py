"""
What does a network forget?
===========================

A network that goes on to learn a new task forgets the old one, unless something protects it. We compare four ways to go
on, after Li and Hoiem [1]_: by what each gains on the new task and what it keeps of the old one.
:doc:`/user_guide/which_way` explains the ways.
"""

# %%
# Two tasks
# ---------
#
# The digits 0 to 4 are the old task, 5 to 9 the new one.

from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

digits = load_digits()
images = (digits.images * 255 / 16).astype("uint8")[..., None]
X, X_test, y, y_test = train_test_split(
    images, digits.target, train_size=400, test_size=600, stratify=digits.target, random_state=0
)
old, old_test = y < 5, y_test < 5

# %%
# Somebody trains a network on the old task.

from sktl import FineTuneClassifier

settings = {"image_size": 32, "max_epochs": 6, "learning_rate": 3e-3, "random_state": 0}
first = FineTuneClassifier("sktl/tiny", "fine_tuning", **settings).fit(X[old], y[old])
print(f"the old task, before: {first.score(X_test[old_test], y_test[old_test]):.3f}")

# %%
# Four ways to go on
# ------------------
#
# The fitted classifier is the backbone of the next one. Its last layer is kept as the *old head*, which
# ``score_original`` uses. Only joint training is given the old images.

import pandas as pd

from sktl.strategies import FineTuning, JointTraining, LearningWithoutForgetting

ways = {
    "feature extraction": "feature_extraction",
    "fine-tuning": FineTuning(backbone_lr_scale=1.0),
    "learning without forgetting": LearningWithoutForgetting(backbone_lr_scale=1.0),
    "joint training": JointTraining(X[old], y[old], backbone_lr_scale=1.0),
}
rows = []
for name, strategy in ways.items():
    model = FineTuneClassifier(first, strategy, **settings).fit(X[~old], y[~old])
    rows.append(
        {
            "way": name,
            "new task": model.score(X_test[~old_test], y_test[~old_test]),
            "old task": model.score_original(X_test[old_test], y_test[old_test]),
        }
    )
results = pd.DataFrame(rows).set_index("way")
results.round(3)

# %%
# The picture
# -----------
#
# On the new task the four are level: what the network knew of digits suffices, and a step to the right is one or two
# images. They differ in what they keep. Feature extraction keeps all of the old task, because no weight of the network
# changes. Fine-tuning forgets. Learning without forgetting trains on the old network's answers for the *new* images,
# joint training on the old images themselves.

import matplotlib.pyplot as plt

fig, ax = plt.subplots(figsize=(7, 4.5), layout="constrained")
before = first.score(X_test[old_test], y_test[old_test])
ax.axhline(before, color="gray", linestyle="--", linewidth=1, label="before")
for name, row in results.iterrows():
    ax.scatter(row["new task"], row["old task"], s=80, label=name)
ax.set(
    xlim=(0.9, 1),
    ylim=(0.7, 1.02),
    xlabel="accuracy on the new task (5 to 9)",
    ylabel="accuracy on the old task (0 to 4)",
)
ax.legend(loc="lower left")
plt.show()

# %%
# .. [1] Z. Li and D. Hoiem, `Learning without Forgetting <https://arxiv.org/abs/1606.09282>`__, ECCV 2016.
