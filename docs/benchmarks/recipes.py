"""Ways to a classifier from a pretrained network: sktl's, and those that people copy; used by transfer_recipes.py.

A recipe takes a trial (files, labels, and what all recipes are told), fits, and returns a function from files to
labels. Labels are class numbers.
"""

import numpy as np
import timm
import torch
from PIL import Image, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, StratifiedKFold
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch import NeuralNetClassifier
from skorch.callbacks import Freezer, LRScheduler
from timm.data import create_transform
from timm.data.auto_augment import NAME_TO_OP
from timm.loss import LabelSmoothingCrossEntropy
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

from sktl import FineTuneClassifier

SEARCHED = ["feature_extraction", "lp_ft", "wise_ft"]
STRATEGIES = ["feature_extraction", "lp_ft", "partial", "gradual_unfreezing", "fine_tuning", "bitfit", "lora", "l2_sp"]


def estimator(trial, **params):
    """Return sktl's classifier; nothing but what all recipes are told differs from its defaults."""
    return FineTuneClassifier(
        trial.backbone,
        weights=trial.weights,
        image_size=trial.image_size,
        data_config={"crop_pct": 1.0},
        max_epochs=trial.epochs,
        batch_size=trial.batch_size,
        random_state=trial.seed,
        **params,
    )


def sktl_default(trial):
    """FineTuneClassifier as it comes."""
    return estimator(trial).fit(trial.files, trial.labels).predict


def sktl_strategy(strategy):
    """FineTuneClassifier with a strategy by name."""

    def recipe(trial):
        return estimator(trial, strategy=strategy).fit(trial.files, trial.labels).predict

    return recipe


def sktl_search(*strategies):
    """GridSearchCV over strategies, refitted with the best."""

    def recipe(trial):
        folds = StratifiedKFold(3, shuffle=True, random_state=trial.seed)
        search = GridSearchCV(estimator(trial), {"strategy": strategies}, cv=folds).fit(trial.files, trial.labels)
        trial.notes["scores"] = dict(zip(strategies, search.cv_results_["mean_test_score"].tolist(), strict=True))
        trial.notes["chosen"] = search.best_params_["strategy"]
        return search.predict

    return recipe


def logistic_regression(searched):
    """Embeddings by timm, standardised, then LogisticRegression as it comes or with C chosen by cross-validation."""

    def recipe(trial):
        network = pretrained(trial, num_classes=0)
        model = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        if searched:
            model = GridSearchCV(model, {"logisticregression__C": np.logspace(-4, 0, 5)}, cv=3)
        model.fit(outputs(network, trial, trial.files), trial.labels)
        return lambda files: model.predict(outputs(network, trial, files))

    return recipe


def skorch_notebook(frozen=False, batch_size=None):
    """The net of skorch's transfer learning notebook; with its Freezer only the last layer is trained."""

    def recipe(trial):
        network = pretrained(trial, num_classes=trial.n_classes)
        last = network.pretrained_cfg["classifier"]
        train = transforms.Compose(
            [
                transforms.RandomResizedCrop(trial.image_size),
                transforms.RandomHorizontalFlip(),
                transforms.ToTensor(),
                transforms.Normalize(network.pretrained_cfg["mean"], network.pretrained_cfg["std"]),
            ]
        )
        net = NeuralNetClassifier(
            network,
            criterion=torch.nn.CrossEntropyLoss,
            lr=0.001,
            batch_size=batch_size or trial.batch_size,
            max_epochs=trial.epochs,
            optimizer=torch.optim.SGD,
            optimizer__momentum=0.9,
            iterator_train__shuffle=True,
            train_split=None,
            callbacks=[
                LRScheduler(policy="StepLR", step_size=7, gamma=0.1),
                *([Freezer(lambda name: not name.startswith(last))] if frozen else []),
            ],
            verbose=0,
        )
        net.fit(Pictures(trial.files, train, trial.labels), y=None)
        return lambda files: outputs(net.module_, trial, files).argmax(axis=1)

    return recipe


def timm_script(optimizer, **augmentation):
    """The loop of timm's train.py with its defaults: cosine after a warm-up, label smoothing 0.1, crops from 8 % on."""

    def recipe(trial):
        let_posterize_keep_a_bit()
        network = pretrained(trial, num_classes=trial.n_classes)
        config = {name: network.pretrained_cfg[name] for name in ("mean", "std")}
        transform = create_transform(
            trial.image_size,
            is_training=True,
            interpolation="random",
            **{"color_jitter": 0.4, **augmentation},
            **config,
        )
        loader = DataLoader(
            Pictures(trial.files, transform, trial.labels),
            trial.batch_size,
            shuffle=True,
            drop_last=len(trial.files) > trial.batch_size,
        )
        stepper = create_optimizer_v2(network, momentum=0.9, **optimizer(trial.batch_size))
        scheduler, n_epochs = create_scheduler_v2(
            stepper, sched="cosine", num_epochs=trial.epochs, warmup_epochs=1, warmup_lr=1e-5, min_lr=0.0
        )
        loss_of = LabelSmoothingCrossEntropy(0.1)
        network.train()
        for epoch in range(n_epochs):
            scheduler.step(epoch)
            for images, labels in loader:
                stepper.zero_grad()
                loss_of(network(images), labels).backward()
                stepper.step()
        return lambda files: outputs(network, trial, files).argmax(axis=1)

    return recipe


def fastai_fine_tune(augmented):
    """fastai's ``vision_learner(...).fine_tune(epochs)``: one more epoch with a frozen body comes first."""

    def recipe(trial):
        from fastai.vision import all as fastai

        labels = dict(zip(trial.files, trial.labels, strict=True))
        block = fastai.DataBlock(
            blocks=(fastai.ImageBlock, fastai.CategoryBlock(vocab=list(range(trial.n_classes)))),
            get_y=lambda file: int(labels[file]),
            splitter=lambda files: (list(range(len(files))), []),  # all images are for training, as in all recipes
            item_tfms=fastai.Resize(trial.image_size),
            batch_tfms=fastai.aug_transforms() if augmented else None,
        )
        loaders = block.dataloaders(
            trial.files, bs=trial.batch_size, num_workers=0, drop_last=len(trial.files) > trial.batch_size
        )
        overlay = {"pretrained_cfg_overlay": {"file": trial.weights}}
        learner = fastai.vision_learner(loaders, trial.backbone, **overlay)
        with learner.no_bar(), learner.no_logging():
            learner.fine_tune(trial.epochs)
        return lambda files: learner.get_preds(dl=loaders.test_dl(files))[0].argmax(dim=1).numpy()

    return recipe


def let_posterize_keep_a_bit():
    """Keep RandAugment from an error: with a strength that leaves no bit, Pillow 13 refuses what earlier ones did."""
    for name in [name for name in NAME_TO_OP if name.startswith("Posterize")]:
        NAME_TO_OP[name] = lambda image, bits, **_: ImageOps.posterize(image, max(1, bits))


def sgd(batch_size):
    """timm's defaults: 0.1 per 256 rows."""
    return {"opt": "sgd", "lr": 0.1 * batch_size / 256, "weight_decay": 2e-5}


def adamw(batch_size):
    """What its recipes for fine-tuning take."""
    return {"opt": "adamw", "lr": 5e-4, "weight_decay": 0.05}


RECIPES = {
    "sktl, as it comes": sktl_default,
    "embeddings + logistic regression": logistic_regression(searched=False),
    "embeddings + logistic regression, C searched": logistic_regression(searched=True),
    "skorch notebook": skorch_notebook(frozen=True),
    "skorch notebook, all weights": skorch_notebook(),
    "skorch notebook, all weights, its batches of 4": skorch_notebook(batch_size=4),
    "fastai fine_tune": fastai_fine_tune(augmented=False),
    "fastai fine_tune, aug_transforms": fastai_fine_tune(augmented=True),
    "timm script, SGD": timm_script(sgd),
    "timm script, AdamW and RandAugment": timm_script(adamw, auto_augment="rand-m9-mstd0.5-inc1", re_prob=0.25),
    "sktl, strategy searched": sktl_search(*SEARCHED),
    "sktl, strategy searched, bitfit too": sktl_search(*SEARCHED, "bitfit"),
    **{f"sktl, {name}": sktl_strategy(name) for name in STRATEGIES},
}


def pretrained(trial, num_classes):
    """Return timm's network with the pretrained weights and a new head."""
    overlay = {"file": trial.weights}
    return timm.create_model(trial.backbone, pretrained=True, num_classes=num_classes, pretrained_cfg_overlay=overlay)


class Pictures(Dataset):
    """A torch data set of files and labels."""

    def __init__(self, files, transform, labels):
        self.files, self.transform, self.labels = files, transform, labels

    def __len__(self):
        return len(self.files)

    def __getitem__(self, index):
        with Image.open(self.files[index]) as image:
            return self.transform(image.convert("RGB")), int(self.labels[index])


def outputs(network, trial, files):
    """Return a network's outputs for files."""
    config = network.pretrained_cfg
    transform = transforms.Compose([transforms.ToTensor(), transforms.Normalize(config["mean"], config["std"])])
    loader = DataLoader(Pictures(files, transform, np.zeros(len(files))), 100)
    network.eval()
    with torch.inference_mode():
        return torch.cat([network(images) for images, _ in loader]).numpy()
