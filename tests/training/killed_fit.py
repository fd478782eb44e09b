"""Fits that are killed: ``killed_fit.py FOLDER STRATEGY OUTPUT STEP...`` runs one in a process of its own per STEP.

The fit kills itself in that training step, counted from 1 over all epochs that it runs; 0 lets it live, and its weights
go to OUTPUT. Printed are the exit codes.
"""

import os
import signal
import sys

import numpy as np
from skorch.callbacks import Callback
from small_models import make_model, three_digits, weights_of


class Kill(Callback):
    def __init__(self, step):
        self.step = step

    def on_batch_begin(self, net, training=False, **kwargs):
        self.step -= training
        if training and self.step == 0:
            os.kill(os.getpid(), signal.SIGKILL)


def make_killable(folder, strategy, **parameters):
    """A fit with all that has a state: dropout, a schedule, early stopping, a moment for each weight."""
    options = {"max_epochs": 6, "batch_size": 9, "learning_rate": 0.02, "early_stopping": True, "n_iter_no_change": 4}
    return make_model(strategy, checkpoint=folder, validation_fraction=0.2, **{**options, **parameters})


def fit_in_a_child(folder, strategy, output, step):
    """Fit in a process of its own, quick because this one has imported all that it needs; return its status."""
    pid = os.fork()
    if pid == 0:
        model = make_killable(folder, strategy, callbacks=[Kill(step)] if step else None).fit(*three_digits())
        np.savez(output, **{name: value.numpy() for name, value in weights_of(model).items()})
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


if __name__ == "__main__":
    folder, strategy, output, *steps = sys.argv[1:]
    print([fit_in_a_child(folder, strategy, output, int(step)) for step in steps])
