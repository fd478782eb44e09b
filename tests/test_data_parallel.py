"""Several processes that train together end where one process ends."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import make_model, three_digits, weights_of
from torch import nn

from sktl.training import Peers, training_with

pytest.importorskip("accelerate", reason='needs accelerate: pip install "sktl[accelerate]"')
from sktl.distributed import data_parallel
from sktl.exceptions import StrategyError

TESTS = Path(__file__).parent
SCRIPT = """
import sys
import numpy as np
from small_models import three_digits
from test_data_parallel import fitted
from sktl.distributed import data_parallel
from small_models import weights_of

for strategy in sys.argv[2:]:
    with data_parallel(cpu=True) as peers:
        model = fitted(strategy)
        np.savez(f"{sys.argv[1]}/{strategy}-{peers.rank}.npz", **{k: v.numpy() for k, v in weights_of(model).items()})
        np.save(f"{sys.argv[1]}/{strategy}-{peers.rank}-losses.npy", [e["train_loss"] for e in model.history_])
"""


def fitted(strategy):
    """Train without dropout, on batches that do not divide evenly and rows that do not weigh the same."""
    X, y = three_digits()
    weight = np.linspace(0.5, 2.0, len(y))
    model = make_model(strategy, max_epochs=2, batch_size=16, learning_rate=1e-2, device="cpu")
    model.backbone.drop.p = 0.0
    model.set_params(random_state=np.random.RandomState(0) if "RANK" not in os.environ else _own_state())
    return model.fit(X, y, sample_weight=weight)


def _own_state():
    """Return another state in each process: the first one's has to count."""
    return np.random.RandomState(int(os.environ["RANK"]))


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def run_together(n, folder, *strategies):
    """Run the script in n processes that know of each other, as torchrun starts them."""
    common = {"WORLD_SIZE": n, "LOCAL_WORLD_SIZE": n, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
    path = os.pathsep.join([str(TESTS), *filter(None, [os.environ.get("PYTHONPATH")])])
    processes = []
    try:
        for rank in range(n):
            own = {**common, "RANK": rank, "LOCAL_RANK": rank, "OMP_NUM_THREADS": 1}
            env = {**os.environ, "PYTHONPATH": path, **{name: str(value) for name, value in own.items()}}
            command = [sys.executable, "-c", SCRIPT, str(folder), *strategies]
            processes.append(subprocess.Popen(command, env=env, stderr=subprocess.PIPE, text=True))
        for process in processes:
            _, said = process.communicate(timeout=150)
            assert process.returncode == 0, said
    finally:
        for process in processes:
            process.kill()
            process.wait(10)


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_two_processes_end_where_one_does(tmp_path):
    strategies = ["fine_tuning", "lp_ft", "l2_sp"]
    run_together(2, tmp_path, *strategies)
    for strategy in strategies:
        alone = fitted(strategy)
        both = [dict(np.load(tmp_path / f"{strategy}-{rank}.npz")) for rank in range(2)]
        for name, value in weights_of(alone).items():
            np.testing.assert_array_equal(both[0][name], both[1][name])
            np.testing.assert_allclose(both[0][name], value.numpy(), atol=2e-5, err_msg=f"{strategy}: {name}")
        losses = np.load(tmp_path / f"{strategy}-0-losses.npy")
        np.testing.assert_allclose(losses[-1], alone.history_[-1]["train_loss"], rtol=0.05)


def test_gradients_are_weighted_by_rows():
    """What each of two processes would send is recorded, then given to the other."""
    torch.manual_seed(0)
    module, rows, sent = nn.Linear(3, 1), torch.randn(5, 3), []
    module(rows).square().mean().backward()
    expected = [parameter.grad.clone() for parameter in module.parameters()]
    for rank, mine in enumerate((rows[0::2], rows[1::2])):
        module.zero_grad()
        loss = module(mine).square().mean()
        loss.backward()

        def add_up(tensor):
            sent.append(tensor.clone())
            return sum(sent) if len(sent) == 2 else tensor

        mean = Peers(rank, 2, add_up=add_up).combine(module, loss.detach(), len(mine))
    torch.testing.assert_close([parameter.grad for parameter in module.parameters()], expected)
    torch.testing.assert_close(mean, module(rows).square().mean().detach())


def test_processes_with_other_rows_are_refused():
    elsewhere = torch.tensor([40, 1600])
    with pytest.raises(ValueError, match=r"the same rows; this one has 45, and the mean is 42\.5"):
        Peers(0, 2, add_up=lambda tensor: tensor + elsewhere).check_rows(45)
    Peers(0, 2, add_up=lambda tensor: tensor + elsewhere).check_rows(40)


def test_alone_nothing_changes():
    X, y = three_digits()
    alone = make_model(device="cpu").fit(X, y)
    with data_parallel(cpu=True) as peers:
        together = make_model(device="cpu").fit(X, y)
    assert (peers.rank, peers.size) == (0, 1)
    for name, value in weights_of(alone).items():
        torch.testing.assert_close(weights_of(together)[name], value, rtol=0, atol=0)


def test_what_cannot_be_shared_is_refused():
    X, y = three_digits()
    with training_with(Peers(0, 2, add_up=lambda tensor: 2 * tensor)):
        with pytest.raises(ValueError, match="2 processes cannot share batches of 1 rows"):
            make_model(batch_size=1).fit(X, y)
        with pytest.raises(StrategyError, match="Batch normalisation that follows the data"):
            make_model("from_scratch").fit(X, y)
