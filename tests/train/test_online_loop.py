"""The online loop: what goes into the buffer, when updates are due, and a run that is cut and goes on."""

from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from ctrlrl.build import build
from ctrlrl.core.off_policy import OnlineConfig
from ctrlrl.core.ranks import ALONE
from ctrlrl.data.dataset import Dataset
from ctrlrl.data.episodes import Episodes, Facts
from ctrlrl.data.replay import ReplayBuffer
from ctrlrl.envs.classic import Pendulum
from ctrlrl.envs.morl_motion import MOPendulum
from ctrlrl.envs.sim import BatchedSim, Sim
from ctrlrl.loops import make_learner, online_loop
from ctrlrl.registry import ALGORITHMS, lookup
from ctrlrl.settings import train_config, typed
from ctrlrl.train.checkpoint import read_folder
from ctrlrl.train.off_policy import OfflineLoop
from ctrlrl.train.online import CHUNK
from ctrlrl.types import Metrics, PolicyOutput, Transition, tree_map

ONLINE = [name for name in ALGORITHMS if getattr(lookup(ALGORITHMS, name, "algorithm"), "online", False)]


class CountState(NamedTuple):
    number: Tensor


class CountSim(Sim):
    """The observation is the number of the step in the episode; the reward is the action."""

    obs_dim, action_dim, episode_length, n_random = 1, 1, 7, 1

    def init(self, noise: Tensor) -> CountState:
        return CountState(0.0 * noise[:, 0])

    def step(self, state: CountState, action: Tensor) -> tuple[CountState, Tensor, Tensor]:
        number = state.number + 1
        return CountState(number), action[:, 0], number == 5

    def observe(self, state: CountState) -> Tensor:
        return state.number[:, None]


class Constant:
    """Acts 3 (which is 1 at most), and counts the updates with the size of the buffer at each."""

    device = torch.device("cpu")
    ranks = ALONE
    loop, rows, offline = "off_policy", 4, False
    needs: frozenset[str] = frozenset()
    kept: tuple[str, ...] = ()

    def __init__(self, **settings: Any):
        self.cfg = OnlineConfig(**settings)
        self.cfg.batch_size, self.cfg.gamma = 4, 0.9  # type: ignore[attr-defined]
        self.began, self.seen, self.progress = 0, [], []

    def act(self, obs: Tensor, *, deterministic: bool = False) -> PolicyOutput:
        return PolicyOutput(torch.full((len(obs), 1), 3.0), None, {})

    def explore(self, obs: Tensor) -> PolicyOutput:
        return self.act(obs)

    def begin_online(self) -> None:
        self.began += 1

    def set_progress(self, done: float) -> None:
        self.progress.append(done)

    def update(self, batch: Transition) -> Metrics:
        self.seen.append(batch.reward)
        return {"loss/critic": torch.tensor(float(len(self.seen)))}


def loop(learner: Any, n_envs: int = 3, env_steps: int = 60, **kwargs: Any) -> Any:
    env = BatchedSim(CountSim(), n_envs, seed=0, stagger=False)
    return online_loop(learner, env, env_steps=env_steps, seed=0, staggered=False, **kwargs)


def data(n: int = 20, reward: float = -7.0) -> Dataset:
    rows = torch.zeros(n, 1)
    return Dataset.of(Transition(rows, rows, rows[:, 0] + reward, rows, torch.zeros(n, dtype=torch.bool), {}))


def episodes() -> Episodes:
    """Two episodes of random numbers in Pendulum's shapes."""
    random = np.random.default_rng(0)
    return Episodes(
        obs=random.standard_normal((40, 3)).astype(np.float32),
        action=random.uniform(-0.9, 0.9, (40, 1)).astype(np.float32),
        reward=random.standard_normal(40).astype(np.float32),
        terminated=np.zeros(40, dtype=bool),
        ends=np.array([20, 40]),
        final_obs=random.standard_normal((2, 3)).astype(np.float32),
        has_final=np.ones(2, dtype=bool),
        usable=np.ones(40, dtype=bool),
        extras={},
        episode_extras={},
        facts=Facts("rollouts", "made by a test", env_id="Pendulum-v1"),
    )


def test_the_buffer_holds_what_happened_across_episode_ends():
    run = loop(Constant(learning_starts=1000), n_envs=1, env_steps=12, skilled=True)
    run.iterate()
    rows = run.buffer.table.read(run.buffer.table.rows[:12])
    assert rows.obs[:, 0].tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]
    assert rows.next_obs[:, 0].tolist() == [1, 2, 3, 4, 5, 1, 2, 3, 4, 5, 1, 2]  # not the next episode's first
    assert rows.terminated.tolist() == [False, False, False, False, True] * 2 + [False, False]
    assert rows.action.unique().tolist() == [1.0], "actions are kept as the environment received them"
    assert run.episode_metrics()["rollout/return"] == 5.0


def test_actions_are_random_before_learning_starts_and_the_policys_after():
    run = loop(Constant(learning_starts=30), env_steps=60)
    run.iterate()
    action = run.buffer.table["action"][:60, 0]
    assert action[:30].abs().max() < 1.0
    assert action[:30].std() > 0.3
    assert (action[30:] == 1.0).all()


@pytest.mark.parametrize(("utd", "freq", "updates"), [(1.0, 1, 30), (0.5, 1, 15), (2.0, 5, 60), (0.1, 1, 3)])
def test_updates_follow_the_ratio_from_the_first_step_after_the_start(utd, freq, updates):
    learner = Constant(learning_starts=30, utd=utd, train_freq=freq)
    run = loop(learner)
    run.iterate()
    assert run.env_steps == 60
    assert len(learner.seen) == run.gradient_steps == updates


@pytest.mark.parametrize(
    ("settings", "n_envs", "updates"),
    [
        ({"learning_starts": 60}, 3, 0),
        ({"learning_starts": 59}, 3, 3),
        ({"learning_starts": 40, "train_freq": 7}, 3, 21),
        ({"learning_starts": 40, "train_freq": 8}, 3, 0),
        ({"learning_starts": 0, "utd": 0.016}, 1, 0),
        ({"learning_starts": 0, "utd": 0.0167}, 1, 1),
        ({"learning_starts": 53, "train_freq": 5, "utd": 0.15}, 1, 0),  # 1.05 after seven steps, but due after five
        ({"learning_starts": 0}, 64, 64),
        ({"learning_starts": 0, "n_steps": 21}, 3, 0),
        ({"learning_starts": 0, "n_steps": 20}, 3, 3),
    ],
)
def test_a_run_too_short_for_an_update_says_so_before_it_starts(settings, n_envs, updates):
    learner = Constant(**settings)
    run = loop(learner, n_envs=n_envs)
    told = run.notices
    while not run.done:
        run.iterate()
    assert len(learner.seen) == updates
    assert [line.startswith("no update comes from 60 environment steps") for line in told] == [True] * (not updates)


@pytest.mark.parametrize(
    ("n_envs", "needs", "share", "told"),
    [
        (10, {"return_to_go"}, 0.5, True),  # six steps each, of up to seven
        (8, {"return_to_go"}, 0.5, False),
        (10, set(), 0.5, False),
        (10, {"return_to_go"}, None, False),  # the data set's rows are there from the first step on
    ],
)
def test_a_run_whose_episodes_may_all_be_unfinished_says_so_before_it_starts(n_envs, needs, share, told):
    learner = Constant(learning_starts=0, offline_share=share)
    learner.needs = frozenset(needs)
    rows = Dataset.of(data().all()._replace(extras={name: torch.zeros(20) for name in needs}))
    lines = loop(learner, n_envs=n_envs, data=rows).notices
    assert [line.startswith("updates wait for a whole episode, of up to 7 steps") for line in lines] == [True] * told


def test_an_iteration_is_a_chunk_and_the_run_ends_with_its_budget():
    run = loop(Constant(), env_steps=3 * CHUNK + 4)
    run.iterate()
    assert run.env_steps == 3 * CHUNK
    run.iterate()
    assert run.done
    assert run.env_steps == 3 * CHUNK + 6  # whole steps of three environments


def test_offline_updates_come_first_and_then_batches_hold_the_share():
    learner, rows = Constant(learning_starts=0, offline_share=0.25), data()
    before = OfflineLoop(learner, rows, gradient_steps=70, batch_size=4)
    run = loop(learner, data=rows, before=before)
    assert run.total_steps == 130
    while run.env_steps == 0:
        run.iterate()
    assert learner.began == 1
    assert run.steps == run.env_steps + 70
    assert all((r == -7.0).all() for r in learner.seen[:70])
    assert all((r == -7.0).sum() == 1 for r in learner.seen[70:])
    assert learner.progress[-1] == 69 / 70, "schedules end with the offline training"


def test_without_a_share_the_rows_begin_the_buffer_and_rewards_keep_their_scale():
    rows = data(n=30)
    rows.reward = (2.0, -1.0)
    run = loop(Constant(learning_starts=1000, buffer_size=50, offline_share=None), data=rows, env_steps=6, skilled=True)
    run.iterate()
    assert run.buffer.table["reward"][:36].tolist() == [-7.0] * 30 + [2.0 * 1.0 - 1.0] * 6


def test_a_data_set_larger_than_the_buffer_leaves_its_last_rows():
    buffer = ReplayBuffer(5, 1, 1)
    rows = data(n=20)
    rows.table["reward"].copy_(torch.arange(20))
    buffer.fill(rows.all())
    assert sorted(buffer.table["reward"].tolist()) == [15, 16, 17, 18, 19]


def test_the_newest_rows_are_found_across_the_rings_seam():
    buffer = ReplayBuffer(5, 1, 1)
    for i in range(8):
        one = torch.full((1, 1), float(i))
        buffer.add(Transition(one, one, one[0], one, one[0] > 9, {}))
    assert sorted(buffer.newest(4)[:, buffer.table.columns["reward"]].tolist()) == [4, 5, 6, 7]
    assert len(buffer.newest(50)) == 5


@pytest.mark.parametrize("n_steps", [1, 3])
def test_what_the_environment_gives_that_is_not_finite_reaches_no_row_and_no_update(n_steps):
    run = loop(Constant(learning_starts=0, n_steps=n_steps), env_steps=150)
    step = run.env.step

    def broken(action):
        found = step(action)
        if run.env_steps == 60:
            found.reward[1] = torch.nan
        return found

    run.env.step = broken
    run.iterate()
    with pytest.raises(ValueError, match="environment step 60: a reward of lane 1 is not finite; mend"):
        run.iterate()
    assert run.buffer.table["reward"][: len(run.buffer)].isfinite().all()
    assert all(rewards.isfinite().all() for rewards in run.learner.seen)


def test_iterations_in_which_no_episode_ends_leave_no_sums():
    run = loop(Constant(learning_starts=0, utd=float(CHUNK)), n_envs=1, env_steps=20)
    for _ in range(20):
        run.iterate()
    assert run.env_steps == 20
    assert [int(sums.episodes) for sums in run.recent] == [1] * 4  # of five steps


def test_a_policy_whose_action_is_not_finite_stops_the_run(monkeypatch):
    run = loop(Constant(), env_steps=150)
    run.learner.act = lambda obs: PolicyOutput(torch.full((len(obs), 1), torch.nan), None, {})
    with pytest.raises(ValueError, match="environment step 102: an action of lane 0 is not finite; the policy"):
        run.iterate()
    monkeypatch.setattr(run, "_must_be_finite", lambda action, step: None)  # as on a GPU
    with pytest.raises(ValueError, match="not finite in the last 150 rows before environment step 150"):
        run.iterate()


LONG = {"parl", "expo"}  # each seconds; their learners are resumed in contract/test_offline_learners.py
ALL = [pytest.param(algo, 2, marks=pytest.mark.slow if algo in LONG else ()) for algo in ONLINE]


@pytest.mark.parametrize(("algo", "n_steps"), [*ALL, ("sac", 1), ("iql", 1)])
def test_cut_and_resumed_equals_uncut_with_the_buffer(algo, n_steps, tmp_path, monkeypatch):
    words = [f"algo={algo}", "env=pendulum", "n_envs=3", "total_steps=450", "algo.learning_starts=100", "algo.utd=0.1"]
    words += ["eval.every=0", "eval.episodes=1", "log.every_steps=50", "run.report=false", "log.progress=false"]
    words += ["algo.batch_size=8", "algo.hidden=[8,8]", "experiment=none", "algo.buffer_size=300", "threads=1"]
    monkeypatch.setattr(Pendulum, "episode_length", 40)
    kind = lookup(ALGORITHMS, algo, "algorithm")
    if hasattr(kind.config, "n_climbs"):
        words += ["algo.base_hidden=[8]", "algo.n_samples=4", "algo.n_kept=2", "algo.n_climbs=1"]
    words += [f"algo.{f.name}=2" for f in fields(kind.config) if f.name in ("base_n_levels", "flow_steps")]
    if kind.multi_objective:
        words[words.index("env=pendulum")] = "env=mo_pendulum"
        words += ["algo.reference=[-5000,-1000]", "algo.eval_divisions=1"]
    elif kind.loop != "hybrid":
        words += [f"algo.n_steps={n_steps}"]
    if kind.offline or kind.loop == "hybrid":
        monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
        words += ["data=file", "data.path=x"]
    if kind.offline:
        words += ["gradient_steps=60"]

    composed = train_config(words)

    def run(folder: Path, iterations: int | None, resume: bool = False) -> Path:
        trainer = build(typed(composed), folder, resume=resume)
        if iterations is None:
            trainer.train()
        else:
            for _ in range(iterations):
                trainer.metrics = trainer.loop.iterate()
            trainer.save("last")
        return folder / "checkpoints" / "last"

    whole = run(tmp_path / "whole", None)
    for stop, iterations in (("early", 1), ("late", 4 if kind.offline else 2)):
        run(tmp_path / stop, iterations)
        resumed = run(tmp_path / stop, None, resume=True)
        for part in ("model", "training"):
            a, b = (getattr(read_folder(folder), part) for folder in (whole, resumed))
            keys = [key for key in a if not key.startswith("eval/")]
            assert keys
            for key in keys:
                assert torch.equal(a[key], b[key]), (stop, key)
        for file in ("buffer.json", "rows_00000.safetensors"):
            assert (whole / file).read_bytes() == (resumed / file).read_bytes(), (stop, file)


class Replayed:
    """A graph's rule without a GPU: a call copies its arguments over the first ones and runs on those."""

    def __init__(self, fn: Any, example: Any, **_: Any):
        self.fn, self.inputs = fn, tree_map(torch.clone, example)

    def __call__(self, *args: Any) -> Any:
        tree_map(lambda static, new: static.copy_(new), self.inputs, args)
        return self.fn(*self.inputs)


@pytest.mark.parametrize("share", ["null", "0.5"])
def test_graphs_follow_the_columns_of_a_batch_from_the_data_set_to_the_environment(share, tmp_path, monkeypatch):
    """A data set's batches hold the numbers of their rows, and those of the environment do not."""
    monkeypatch.setattr("ctrlrl.core.off_policy.Graph", Replayed)
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
    words = ["algo=iql", "env=pendulum", "n_envs=3", "total_steps=60", "algo.learning_starts=0", "data=file"]
    words += ["data.path=x", "gradient_steps=60", "algo.batch_size=8", "algo.hidden=[8,8]", "experiment=none"]
    words += [f"algo.offline_share={share}", "threads=1"]
    found = []
    for mode in ("eager", "graph"):
        run = build(typed(train_config(words)), tmp_path / mode).loop
        run.learner.set_compile(mode)
        while not run.done:
            run.iterate()
        found.append(run.learner.model_state())
    assert all(torch.equal(value, found[1][name]) for name, value in found[0].items())


def test_a_run_that_keeps_no_buffer_says_so_and_goes_on(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
    words = ["algo=iql", "env=pendulum", "n_envs=3", "total_steps=300", "data=file", "data.path=x", "gradient_steps=50"]
    words += ["eval.every=0", "eval.episodes=1", "run.report=false", "algo.batch_size=8", "algo.hidden=[8,8]"]
    words += ["checkpoint.buffer=false", "experiment=none", "threads=1"]
    first = build(typed(train_config(words)), tmp_path)
    first.loop.iterate()
    first.loop.iterate()
    first.save("last")
    assert not list((tmp_path / "checkpoints" / "last").glob("rows_*"))
    again = build(typed(train_config(words)), tmp_path, resume=True)
    assert "checkpoint.buffer=false" in capsys.readouterr().err
    assert again.train()["status"] == "finished"


def test_an_algorithm_that_only_reads_data_is_refused_online():
    with pytest.raises(ValueError, match="total_steps: a run that learns from a data set counts gradient_steps"):
        train_config(["algo=prdc", "env=pendulum", "data=file", "data.path=x", "total_steps=100"])
    cfg = typed(train_config(["algo=prdc", "env=pendulum", "data=file", "data.path=x", "gradient_steps=9"]))
    cfg.total_steps = 100
    with pytest.raises(ValueError, match="algo=prdc learns from a data set alone; leave total_steps out"):
        build(cfg, Path("nowhere"))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"buffer_size": 0}, "buffer_size must be at least 1"),
        ({"utd": 0.0}, "utd"),
        ({"offline_share": 1.5}, "offline_share"),
        ({"train_freq": 0}, "train_freq must be at least 1"),
        ({"learning_starts": -1}, "learning_starts must be at least 0"),
    ],
)
def test_settings_out_of_range_are_named(settings, message):
    with pytest.raises(ValueError, match=message):
        OnlineConfig(**settings)


def test_a_learner_from_scratch_takes_a_data_set_besides(tmp_path, monkeypatch):
    """No updates before the first step, random actions first, and the share of every batch from the data."""
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
    words = ["algo=sac", "env=pendulum", "n_envs=3", "total_steps=60", "data=file", "data.path=x", "threads=1"]
    words += ["algo.batch_size=8", "algo.hidden=[8,8]", "algo.learning_starts=30", "data.reward_scale=0.0"]
    run: Any = build(typed(train_config([*words, "data.reward_shift=5.0", "algo.offline_share=0.25"])), tmp_path).loop
    assert run.clock == "env_steps"
    assert run.facts.env_id == "Pendulum-v1"
    run.iterate()
    assert run.buffer.table["action"][:30].std() > 0.3
    seen = run.source.sample(8)
    assert sum(any(torch.equal(o, d) for d in torch.from_numpy(episodes().obs)) for o in seen.obs) == 2
    assert (seen.reward == 5.0).all(), "online rewards are transformed as the data set's"


def test_rewards_that_a_preset_transforms_are_refused_where_there_is_no_data_set(tmp_path):
    words = ["algo=rlpd", "env=pendulum", "experiment=rlpd/antmaze", "algo.hidden=[8]", "threads=1"]
    with pytest.raises(ValueError, match=r"data.reward_shift=-1.0, .* from a preset, .* add data=file"):
        build(typed(train_config(words)), tmp_path)


def test_a_data_set_that_has_no_room_in_the_buffer_is_refused():
    with pytest.raises(ValueError, match=r"algo.buffer_size=19: the 20 rows of the data set begin the replay buffer"):
        loop(Constant(offline_share=None, buffer_size=19), data=data(n=20))


def test_a_learner_of_each_kind_makes_a_loop():
    for algo in ONLINE:
        kind = lookup(ALGORITHMS, algo, "algorithm")
        env = BatchedSim(MOPendulum() if kind.multi_objective else CountSim(), 2, seed=0, stagger=False)
        more: dict[str, Any] = {"reference": [0.0, 0.0]} if kind.multi_objective else {}
        if hasattr(kind.config(), "base_n_levels"):
            more |= {"base_hidden": [8], "base_n_levels": 2, "base_sampling_steps": 2}
        cfg = kind.config(batch_size=4, hidden=[8, 8], learning_starts=10, utd=1.0, **more)
        learner = make_learner(cfg, env.spec)
        real = data() if kind.loop == "hybrid" else None
        run = online_loop(learner, env, env_steps=40, seed=0, staggered=False, data=real)
        metrics = run.iterate()
        assert run.gradient_steps == 30
        assert all(torch.isfinite(value) for value in metrics.values()), algo


def test_an_iteration_ends_after_a_chunk_of_updates_too():
    run = loop(Constant(learning_starts=0, utd=20.0), n_envs=1, env_steps=60)
    run.iterate()
    assert run.env_steps == 3
    assert run.gradient_steps == 60


def test_the_length_of_the_offline_part_stays_once_the_environment_has_begun():
    learner, rows = Constant(learning_starts=0), data()

    def fresh(gradient_steps: int) -> Any:
        return loop(learner, data=rows, before=OfflineLoop(learner, rows, gradient_steps=gradient_steps, batch_size=4))

    run = fresh(100)
    run.iterate()
    shorter = fresh(30)
    shorter.gradient_steps = run.gradient_steps  # what the trainer restores
    shorter.load_state_dict(run.state_dict())
    shorter.iterate()
    assert (learner.began, shorter.steps - shorter.env_steps) == (1, 50), "the shorter offline part was over"
    with pytest.raises(ValueError, match="gradient_steps stays 50"):
        fresh(200).load_state_dict(shorter.state_dict())


def test_a_run_cannot_turn_its_clock_on_resume(tmp_path, monkeypatch):
    monkeypatch.setattr("ctrlrl.sources.load", lambda path, data_id=None: episodes())
    words = ["algo=iql", "env=pendulum", "data=file", "data.path=x", "gradient_steps=50", "experiment=none"]
    words += ["eval.every=0", "eval.episodes=1", "algo.batch_size=8", "algo.hidden=[8,8]", "threads=1"]
    build(typed(train_config(words)), tmp_path).save("last")
    with pytest.raises(ValueError, match="counts gradient_steps and would now count steps"):
        build(typed(train_config([*words, "total_steps=100", "n_envs=3"])), tmp_path, resume=True)


def test_a_buffer_smaller_than_one_step_is_refused_before_anything_is_read():
    with pytest.raises(ValueError, match=r"algo\.buffer_size=10 is smaller than one step of n_envs=64"):
        typed(train_config(["algo=iql", "env=pendulum", "data=file", "data.path=x", "algo.buffer_size=10"]))


def test_sums_do_not_reach_across_a_step_that_was_refused():
    """A callback ends training at a step, which is not kept, and the next call goes on behind it."""
    run = loop(Constant(learning_starts=1000, n_steps=2), n_envs=1, skilled=True)
    run.on_step = lambda obs, out, step: int(obs) != 2
    for _ in range(5):
        run.step()
    rows = run.buffer.table.read(run.buffer.table.rows[: len(run.buffer)])
    assert rows.obs[:, 0].tolist() == [0, 3]
    assert rows.next_obs[:, 0].tolist() == [2, 5]


@pytest.mark.parametrize("starts", [0, 1000])
def test_action_noise_is_added_to_random_actions_and_to_the_policys_and_cut_to_the_box(starts):
    run = loop(Constant(learning_starts=starts, action_noise=0.2), env_steps=150)
    run.learner.act = lambda obs: PolicyOutput(torch.full((len(obs), 1), 0.5), None, {})
    run._due = lambda: 0
    run.iterate()
    action = run.buffer.table["action"][:150, 0]
    if starts == 0:
        assert action.mean().item() == pytest.approx(0.5, abs=0.06)
        assert action.std().item() == pytest.approx(0.2, abs=0.04)
    else:
        assert (action.abs() == 1.0).any(), "uniform actions with noise leave the box now and then"
    assert action.abs().max() <= 1.0
