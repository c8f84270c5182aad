"""`bench updates` and the fidelity protocol: the authors' files unmodified on one side, the same rows on both."""

from __future__ import annotations

import json
import sys
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ctrlrl.bench import checkout as checkouts
from ctrlrl.bench.checkout import Repository, checkout
from ctrlrl.bench.offline_ours import BareProducts, _per_cpu_second
from ctrlrl.bench.offline_peers import Peer
from ctrlrl.cli import main

AUTHORS = """
import d4rl
import gym
import numpy as np
import pyrallis
import torch
import wandb
from tqdm import trange
from typing import Optional, Union

def compute_mean_std(states, eps):
    return states.mean(0), states.std(0) + eps

def normalize_states(states, mean, std):
    return (states - mean) / std

class ReplayBuffer:
    def __init__(self, state_dim, action_dim, size, device):
        self.size = size
    def load_d4rl_dataset(self, data):
        print("Dataset size")
        names = "observations", "actions", "rewards", "next_observations", "terminals"
        self.data = [torch.as_tensor(data[name]) for name in names]
    def sample(self, n):
        rows = np.random.randint(0, self.size, n)
        return [column[rows] for column in self.data]

def net(n_in, n_out):
    return torch.nn.Sequential(torch.nn.Linear(n_in, 8), torch.nn.ReLU(), torch.nn.Linear(8, n_out))

class Actor(torch.nn.Module):
    def __init__(self, state_dim, action_dim, max_action):
        super().__init__()
        self.net = net(state_dim, action_dim)
    def forward(self, state):
        return self.net(state).tanh()
    def act(self, state, device):
        return self(torch.tensor(state, dtype=torch.float32)).detach().numpy()

class Critic(torch.nn.Module):
    def __init__(self, state_dim, action_dim):
        super().__init__()
        self.net = net(state_dim + action_dim, 1)
    def forward(self, state, action):
        return self.net(torch.cat([state, action], 1))

class TD3_BC:
    def __init__(self, max_action, actor, actor_optimizer, critic_1, critic_1_optimizer, critic_2, critic_2_optimizer,
                 **settings):
        self.actor, self.actor_optimizer, self.settings = actor, actor_optimizer, settings
        self.critic_1_optimizer, self.critic_2_optimizer = critic_1_optimizer, critic_2_optimizer
        self.total_it = 0
    def train(self, batch):
        self.total_it += 1
        self.batch = batch
        return {"critic_loss": float(self.total_it)}

def evaluate(env: Optional[gym.Env] = None, scale: Union[gym.Wrapper, float] = 1.0):
    for _ in trange(3):
        pass

@pyrallis.wrap()
def train(config):
    wandb.init()
"""


@pytest.fixture
def authors(tmp_path):
    """A repository with the shape of CORL's, with small networks and an update that only counts."""
    file = tmp_path / "authors" / "algorithms" / "offline" / "td3_bc.py"
    file.parent.mkdir(parents=True)
    file.write_text(AUTHORS)
    return str(tmp_path / "authors")


@pytest.fixture
def rollout_file(tmp_path):
    """Two episodes of Hopper's shape, the second cut by the clock; returns 10 and 510."""
    rng = np.random.default_rng(0)
    path = tmp_path / "hopper-tiny.npz"
    rewards = np.full(40, 1.0, np.float32)
    rewards[10:] = 17.0
    np.savez(
        path,
        observations=np.arange(440, dtype=np.float32).reshape(40, 11) / 100,
        actions=rng.uniform(-1, 1, (40, 3)).astype(np.float32),
        rewards=rewards,
        terminals=np.arange(40) == 9,
        timeouts=np.arange(40) == 39,
        episode_ends=np.array([10, 40]),
        final_observations=np.full((2, 11), [[-1.0], [-2.0]], np.float32),
        episode_policy=np.array(["a", "b"]),
        episode_noise_std=np.zeros(2, np.float32),
        episode_seed=np.array([0, 1]),
        env_id="Hopper-v4",
    )
    return path


@pytest.fixture
def benchmarks(monkeypatch):
    """The folder of commands, importable as for a command that lies in it."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")


@pytest.fixture
def protocol(benchmarks):
    return import_module("offline_protocol")


@pytest.fixture
def fidelity(benchmarks):
    return import_module("offline_fidelity")


def rows_of(n: int = 6) -> dict[str, np.ndarray]:
    states = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    zeros = np.zeros((n, 1), np.float32)
    return {
        "observations": states, "actions": zeros, "rewards": zeros[:, 0], "next_observations": states + 1,
        "terminals": zeros[:, 0],
    }  # fmt: skip


def bench(*words):
    with pytest.raises(SystemExit) as end:
        main(["bench", "updates", *words])
    return end.value.code


def test_importing_the_authors_files_leaves_no_trace(authors, monkeypatch):
    own = ModuleType("algorithms")
    monkeypatch.setitem(sys.modules, "algorithms", own)
    path, before = list(sys.path), set(sys.modules)
    (module,), _ = checkout("corl", "td3bc", authors)
    assert module.TD3_BC is not None
    assert sys.modules["algorithms"] is own
    assert sys.path == path
    assert set(sys.modules) == before


def test_a_checkout_is_known_by_gits_own_hash(authors, monkeypatch):
    file = Path(authors, "algorithms", "offline", "td3_bc.py")
    file.write_text("")
    blob = "e69de29bb2d1d6434b8b29ae775ad8c2e48c5391"  # git hash-object of an empty file
    repository = Repository("someone/theirs", "0" * 40, {"td3bc": {"algorithms/offline/td3_bc.py": blob}})
    monkeypatch.setitem(checkouts.REPOSITORIES, "corl", repository)
    assert checkout("corl", "td3bc", authors)[1] == "someone/theirs td3bc @ 000000000000"
    file.write_text("1\n")
    assert checkout("corl", "td3bc", authors)[1].endswith("changed: algorithms/offline/td3_bc.py")


@pytest.mark.parametrize(
    ("vs", "algo", "folder", "said"),
    [
        ("corl", "iql", None, "needs peer_dir=FOLDER: a checkout of tinkoff-ai/CORL at commit 6afec90484bb"),
        ("prdc", "prdc", "nowhere", "found no prdc.py in peer_dir=nowhere: a checkout of LAMDA-RL/PRDC"),
        ("corl", "prdc", None, "vs=corl holds algo=iql, td3bc"),
        ("sb3", "iql", None, "vs=corl, prdc, a2pr"),
    ],
)
def test_a_missing_checkout_is_named_with_the_mend(vs, algo, folder, said):
    with pytest.raises(ValueError, match=r"peer_dir|holds|compares") as error:
        checkout(vs, algo, folder)
    assert said in str(error.value)


def test_the_authors_see_standardised_states_and_the_rewards_as_they_are(authors, capsys):
    data = rows_of()
    peer = Peer("corl", "td3bc", authors, data | {"rewards": np.arange(6, dtype=np.float32)}, batch_size=64, alpha=7.0)
    assert capsys.readouterr().out == ""
    peer.update()
    states, _, rewards, next_states, _ = peer._parts.learner.batch
    std = 2 * np.sqrt(35 / 12) + 1e-3  # of 0, 2, ..., 10
    index = rewards.long()
    torch.testing.assert_close(states[:, 0], (2 * index.float() - 5) / std)
    torch.testing.assert_close(next_states[:, 0], (2 * index.float() + 1 - 5) / std)
    assert peer._parts.learner.settings["alpha"] == 7.0
    raw = data["observations"]
    torch.testing.assert_close(torch.from_numpy(peer.act(raw[2])), peer.policy(raw)[2])
    assert peer.n_parameters == (2 * 8 + 8 + 8 + 1) + 2 * (3 * 8 + 8 + 8 + 1)


def test_the_seed_fixes_the_authors_networks(authors):
    first, again, other = (Peer("corl", "td3bc", authors, rows_of(), seed=s).policy(np.ones((1, 2))) for s in (3, 3, 4))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_floor_has_the_products_of_an_update_and_no_others():
    batch, obs, act, width = 4, 17, 6, 32
    floor = BareProducts(batch, obs, act, [width, width], "float32", 0.0)
    with FlopCounterMode(display=False) as counter:
        updates = floor._work()

    def there(n_in, n_out):
        return 2 * batch * (n_in * width + width * width + width * n_out)

    def back(n_in, n_out):  # weights of every layer, inputs of all but the first
        return there(n_in, n_out) + 2 * batch * (width * width + width * n_out)

    critics = 4 * there(obs + act, 1) + 2 * back(obs + act, 1)
    rest = 2 * there(obs, 1) + back(obs, 1) + there(obs, act) + back(obs, act)
    assert counter.get_total_flops() == updates * (critics + rest)


def test_a_row_says_what_was_compared_on_which_data(authors, rollout_file, capsys):
    words = ["algo=td3bc", "algo.hidden=[8]", "algo.batch_size=16", "data=file", f"data.path={rollout_file}"]
    words += ["env=hopper-v4", "vs=corl", f"peer_dir={authors}", "pairs=1", "seconds=0.01"]
    assert bench(*words) == 0
    row = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (row["kind"], row["algo"], row["unit"], row["n_envs"], row["threads"]) == (
        "updates", "td3bc", "updates/s", None, 1,
    )  # fmt: skip
    assert (row["rows"], row["obs_dim"], row["action_dim"], row["batch_size"]) == (40, 11, 3, 16)
    assert row["data"] == "hopper-tiny.npz"
    assert row["peer"].startswith("tinkoff-ai/CORL td3bc @ 6afec90484bb, changed")
    assert row["ratio"] == pytest.approx(row["value"] / row["peer_value"])


def test_the_ratio_by_processor_time_does_not_see_who_else_uses_the_machine():
    quiet = {"value": 20.0, "wall_seconds": 1.0, "cpu_seconds": 1.0}
    fields = quiet | {"peer_value": 2.0, "peer_wall_seconds": 5.0, "peer_cpu_seconds": 1.0}
    assert _per_cpu_second(fields, "") / _per_cpu_second(fields, "peer_") == 2.0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["algo=td3bc", "vs=floor"], "vs=floor knows the products of algo=iql"),
        (["algo=td3bc", "algo.hidden=[9]", "vs=corl"], "keep the authors' network sizes"),
        (["algo=td3bc", "vs=prdc"], "vs=prdc holds algo=prdc"),
        (["algo=ppo", "vs=corl"], "offline"),
    ],
)
def test_comparisons_that_mean_nothing_are_refused(words, said, authors, rollout_file, capsys):
    rest = ["data=file", f"data.path={rollout_file}", "env=hopper-v4", f"peer_dir={authors}", "pairs=1", "seconds=0.01"]
    assert bench(*words, *rest) == 2
    assert said in capsys.readouterr().err


def test_the_protocol_reads_true_next_observations_and_scales_iqls_rewards_alone(protocol, rollout_file):
    columns, env_id = protocol.load(rollout_file, "iql")
    assert env_id == "Hopper-v4"
    assert columns["next_observations"][[8, 9, 10, 39], 0].tolist() == pytest.approx([0.99, -1.0, 1.21, -2.0])
    assert columns["terminals"].nonzero()[0].tolist() == [9]
    assert columns["rewards"][[0, 10]].tolist() == [2.0, 34.0]  # 1000 / (510 - 10)
    assert protocol.load(rollout_file, "td3bc")[0]["rewards"][[0, 10]].tolist() == [1.0, 17.0]


def test_losses_are_averaged_over_the_last_even_numbered_updates(protocol, authors, monkeypatch):
    monkeypatch.setattr(protocol, "AVERAGED", 3)
    side = protocol.PeerSide("corl", "td3bc", authors, rows_of())
    assert side.advance(9) == {"critic_loss": 6.0}  # updates 4, 6, 8
    assert side.advance(2) == {"critic_loss": 8.0}


@pytest.mark.parametrize("task", ["hopper", "halfcheetah", "walker2d"])
@pytest.mark.parametrize("algo", ["iql", "td3bc", "prdc", "a2pr"])
def test_ours_has_the_protocols_settings(protocol, rollout_file, algo, task):
    path = rollout_file.with_name(f"{task}-medium.npz")
    path.write_bytes(rollout_file.read_bytes())
    cfg = protocol.OursSide(algo, path, "Hopper-v4", 0, "float32").learner.cfg
    wanted = protocol.settings(algo, path.stem)
    for name in wanted.keys() - {"max_steps"}:
        assert getattr(cfg, protocol.SHARED[name]) == wanted[name], name


def test_a_run_whose_rows_are_there_is_not_run_again(
    protocol, fidelity, authors, rollout_file, monkeypatch, tmp_path, capsys
):
    monkeypatch.setitem(protocol.POINTS, "td3bc", (50, 100))
    monkeypatch.setattr(protocol, "EPISODES", 2)
    out = tmp_path / "rows.jsonl"
    words = ["offline_fidelity.py", "--algo", "td3bc", "--data", str(rollout_file), "--out", str(out)]
    for side in ("peer", "ours"):
        monkeypatch.setattr(sys, "argv", [*words, "--side", side, "--peer-dir", authors])
        fidelity.main()
        fidelity.main()
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(row["side"], row["step"]) for row in rows] == [("peer", 50), ("peer", 100), ("ours", 50), ("ours", 100)]
    assert "there already" in capsys.readouterr().out
    assert rows[1]["losses"] == {"critic_loss": 51.0}  # of 2, 4, ..., 100
    for row in rows:
        assert {"q_data", "q_policy", "action_mse", "return_mean", "length_mean", "score"} <= set(row)
        assert len(row["returns"]) == 2


def test_the_table_marks_what_is_apart_and_counts_shared_points_alone(fidelity, monkeypatch, tmp_path):
    def row(seed, side, step, q, value):
        cell = {"algo": "iql", "data": "d", "seed": seed, "side": side, "step": step, "dtype": "float32"}
        return cell | {"q_data": q, "return_mean": value, "losses": {"critic_loss": 2.0}}

    found = [row(0, "ours", 1, 11.0, 1.0), row(1, "ours", 1, 13.0, 3.0), row(0, "peer", 1, 10.0, 5.0)]
    found += [row(1, "peer", 1, 10.0, 7.0), row(0, "peer", 2, 99.0, 99.0)]
    path, reference = tmp_path / "rows.jsonl", tmp_path / "reference.json"
    path.write_text("".join(json.dumps(r) + "\n" for r in found))
    reference.write_text(json.dumps({"rows": []}))
    monkeypatch.setattr(fidelity, "REFERENCE", reference)
    lines = fidelity.table(path).splitlines()
    assert "| iql | d | 1 | Q data | ours 12 | peer 10 | **1.200** |" in lines
    assert "| iql | d | 1 | critic_loss | ours 2 | peer 2 | 1.000 |" in lines
    assert "| iql | d | ours / peer | Q data 1.20 … 1.20, critic_loss 1.00 … 1.00 |" in lines
    # means 2 and 6, standard errors 1 and 1
    assert "| iql | d | ours 2 ± 1 (2 x 1) | peer 6 ± 1 (2 x 1) | -2.8 |" in lines
    assert not any("99" in line for line in lines)
