"""PDPPO beside the same steps written by hand, and what it keeps, refuses and leaves alone."""

import copy
import math
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ctrlrl import PDPPO, BaseCallback
from ctrlrl.algos.pdppo import PDPPOConfig, PDPPOLearner
from ctrlrl.config import EnvConfig, TrainConfig
from ctrlrl.envs.inventory import LotSizing
from ctrlrl.envs.sim import BatchedSim
from ctrlrl.loops import make_learner, training_loop
from ctrlrl.settings import train_config, typed
from ctrlrl.sweep.cells import cells_of
from ctrlrl.sweep.plan import read_plan
from ctrlrl.tasks import make_env
from ctrlrl.train.rollout import Collector
from ctrlrl.types import EnvSpec, Rollout, tree_map

SMALL: dict[str, Any] = {"n_steps": 10, "n_epochs": 3, "hidden": [16], "kept_rollouts": 0}


def setup(n_envs: int = 3, **settings: Any) -> tuple[Any, Collector]:
    torch.manual_seed(2)
    env = BatchedSim(LotSizing(), n_envs, seed=0)
    learner: Any = make_learner(PDPPOConfig(**{**SMALL, **settings}), env.spec)
    collector = Collector(env, learner, learner.cfg.n_steps)
    collector.reset(0)
    return learner, collector


def collected(collector: Collector) -> Rollout:
    return tree_map(torch.clone, collector.collect())


def sums(reward: Tensor, done: Tensor, gamma: float) -> Tensor:
    """[T, B] by the loop of the authors' code."""
    found, total = torch.zeros_like(reward), torch.zeros_like(reward[0])
    for t in reversed(range(len(reward))):
        total = reward[t] + gamma * total * ~done[t]
        found[t] = total
    return found


def by_hand(learner: Any, rollout: Rollout, *, use: str) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Policy, V_pre and V_x after an update: per-machine ratios, three Adams, whole batches. use: max or pre."""
    cfg = learner.cfg
    policy, pre, post = (copy.deepcopy(x) for x in (learner.policy, learner.critic, learner.post_critic))
    adams = [
        torch.optim.Adam(net.parameters(), lr=lr, eps=cfg.adam_eps)
        for net, lr in ((policy, cfg.learning_rate), (pre, cfg.vf_learning_rate), (post, cfg.vf_learning_rate))
    ]
    obs, post_obs = rollout.obs.flatten(0, 1), rollout.extras["post_obs"].flatten(0, 1)
    action, old = rollout.action.flatten(0, 1), rollout.log_prob.flatten(0, 1)
    done = rollout.terminated | rollout.truncated
    g_x, g_pre = (sums(rollout.extras["reward_split"][..., i], done, cfg.gamma).flatten() for i in (0, 1))
    with torch.no_grad():
        a_x, a_pre = g_x - post(post_obs), g_pre - pre(obs)
        advantage = (torch.maximum(a_x, a_pre) if use == "max" else a_pre).unsqueeze(1)
    for _ in range(cfg.n_epochs):
        distribution = torch.distributions.Categorical(logits=policy.logits(obs))
        ratio = (distribution.log_prob(action) - old).exp()
        clipped = ratio.clamp(1 - cfg.clip_range, 1 + cfg.clip_range)
        actor = (-torch.min(ratio * advantage, clipped * advantage) - cfg.ent_coef * distribution.entropy()).mean()
        losses = (actor, F.mse_loss(pre(obs), g_pre), F.mse_loss(post(post_obs), g_x))
        for adam, loss in zip(adams, losses, strict=True):
            adam.zero_grad()
            loss.backward()
            adam.step()
    return policy, pre, post


def assert_same(a: nn.Module, b: nn.Module) -> None:
    for x, y in zip(a.parameters(), b.parameters(), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=4e-5)  # every entry moves by 2e-3


# Adam divides by the gradient's size: without a larger eps it would carry roundings of gradients near 0 into steps
HAND: dict[str, Any] = {"adam_eps": 1e-2, "n_epochs": 4}


def test_an_update_is_the_paper_s_loop_written_by_hand():
    learner, collector = setup(**HAND)
    rollout = collected(collector)
    rollout.terminated[4, 1] = True
    nets = by_hand(learner, rollout, use="max")
    before = [p.clone() for p in learner.policy.parameters()]
    learner.update(rollout)
    for want, got in zip(nets, (learner.policy, learner.critic, learner.post_critic), strict=True):
        assert_same(want, got)
    assert all(not torch.equal(a, b) for a, b in zip(before, learner.policy.parameters(), strict=True))


def test_with_v_x_at_infinity_the_policy_s_update_is_ppo_with_monte_carlo_advantages():
    learner, collector = setup(**HAND)
    rollout = collected(collector)
    policy, pre, _ = by_hand(learner, rollout, use="pre")
    learner.post_critic.register_forward_hook(lambda module, given, out: torch.full_like(out, math.inf))
    learner.update(rollout)
    assert_same(policy, learner.policy)
    assert_same(pre, learner.critic)


def spied(learner: Any) -> list[Any]:
    """Batches of every loss from now on."""
    seen: list[Any] = []
    inner = learner._loss

    def loss(batch: Any) -> Any:
        seen.append(batch)
        return inner(batch)

    learner._loss = loss
    return seen


def test_where_all_reward_comes_with_the_decision_and_is_known_its_advantage_counts_unless_the_other_is_larger():
    """A deterministic task, r_x = r: G_pre is 0, and an exact V_x leaves A_x = 0."""
    learner, collector = setup(gamma=0.9)
    rollout = collected(collector)
    reward = -torch.arange(1.0, 11.0).unsqueeze(1).expand(10, 3)
    split = torch.stack((reward, torch.zeros_like(reward)), -1)
    exact = sums(reward, rollout.terminated | rollout.truncated, 0.9)
    before = torch.linspace(-2.0, 2.0, 30).view(10, 3)
    known = rollout._replace(extras={"reward_split": split}, value=torch.stack((exact, before), -1))
    advantage, target = learner.advantages(known)
    torch.testing.assert_close(target, torch.stack((exact, torch.zeros_like(exact)), -1))
    torch.testing.assert_close(advantage, torch.where(before >= 0.0, 0.0, -before))
    worse = known._replace(value=torch.stack((exact + 1.0, before), -1))  # A_x = -1
    torch.testing.assert_close(learner.advantages(worse)[0], torch.where(before >= 1.0, -1.0, -before))


def test_the_first_ratio_is_1_for_every_machine():
    learner, collector = setup()
    seen = spied(learner)
    learner.update(collected(collector))
    fresh, _ = setup()
    log_ratio, entropy, _ = fresh.log_ratio(seen[0])
    assert log_ratio.shape == entropy.shape == (30, 5)
    assert log_ratio.abs().max().item() < 1e-5


def test_an_update_sees_the_kept_rollouts_with_the_log_probs_of_their_collection():
    learner, collector = setup(kept_rollouts=2)
    rollouts = []
    for n in (1, 2, 3, 3):
        seen = spied(learner)
        rollouts.append(collected(collector))
        learner.update(tree_map(torch.clone, rollouts[-1]))
        used = torch.cat([r.log_prob for r in rollouts[-n:]]).flatten(0, 1)
        assert len(seen) == 3
        assert seen[-1].obs.shape == (30 * n, 15)
        assert torch.equal(seen[-1].log_prob.sum(1).sort().values, used.sum(1).sort().values)


def test_a_return_goes_on_over_the_border_of_two_rollouts_but_not_over_a_reset():
    for reset in (False, True):
        learner, collector = setup(kept_rollouts=1, n_epochs=1)
        first = collected(collector)
        learner.update(first)
        if reset:
            learner.forget_episodes()
        seen = spied(learner)
        second = collected(collector)
        learner.update(second)
        reward = torch.cat((first.reward, second.reward))
        done = torch.zeros(20, 3, dtype=torch.bool)
        done[9] = reset
        want = sums(reward, done, 0.9).flatten()
        torch.testing.assert_close(seen[0].target.sum(1).sort().values, want.sort().values, rtol=1e-5, atol=1e-2)


def test_a_kept_value_is_that_of_the_critic_that_acted():
    learner, collector = setup(kept_rollouts=1, n_epochs=1)
    first = collected(collector)
    with torch.no_grad():
        v_x = learner.post_critic(first.extras["post_obs"])
    learner.update(tree_map(torch.clone, first))
    seen = spied(learner)
    learner.update(collected(collector))
    values = {tuple(row) for row in seen[0].value.tolist()}
    assert {tuple(row) for row in torch.stack((v_x, first.value), -1).flatten(0, 1).tolist()} <= values


def test_one_critic_learns_the_total_return():
    learner, collector = setup(critics="single")
    seen = spied(learner)
    rollout = collected(collector)
    learner.update(rollout)
    want = sums(rollout.reward, rollout.terminated, 0.9).flatten()
    torch.testing.assert_close(seen[0].target.sort().values, want.sort().values, rtol=1e-5, atol=1e-3)
    torch.testing.assert_close(seen[0].advantage, seen[0].target - seen[0].value)
    assert set(learner.opt) == {"actor_critic", "critic"}
    assert not [name for name in learner.model_state() if name.startswith("post_critic")]


def test_without_train_trunk_only_the_last_layer_of_the_policy_moves():
    for train_trunk in (False, True):
        learner, collector = setup(train_trunk=train_trunk)
        before = [p.detach().clone() for p in learner.policy.net.parameters()]
        learner.update(collected(collector))
        moved = [not torch.equal(a, b) for a, b in zip(before, learner.policy.net.parameters(), strict=True)]
        assert moved == [train_trunk, train_trunk, True, True]


def test_the_three_optimisers_have_the_paper_s_rates_and_none_clips_a_gradient():
    learner, _ = setup()
    rates = {name: pytest.approx(float(opt.learning_rate)) for name, opt in learner.opt.items()}
    assert rates == {"actor_critic": 5.5e-4, "critic": 1e-3, "post_critic": 1e-3}
    assert {opt.max_grad_norm for opt in learner.opt.values()} == {None}


def test_scaled_rewards_are_scaled_in_both_halves():
    learner, collector = setup(normalize_reward=True)
    seen = spied(learner)
    rollout = collected(collector)
    learner.update(rollout)
    scaled = learner.reward_scaler(rollout.reward)
    want = sums(scaled, rollout.terminated, 0.9).flatten()
    torch.testing.assert_close(seen[0].target.sum(1).sort().values, want.sort().values, rtol=1e-4, atol=1e-4)


def test_kept_rollouts_of_another_number_of_lanes_are_left_out():
    learner, collector = setup(kept_rollouts=3)
    learner.update(collected(collector))
    env = BatchedSim(LotSizing(), 5, seed=0)
    other = Collector(env, learner, 10)
    other.reset(0)
    seen = spied(learner)
    learner.update(collected(other))
    assert seen[0].obs.shape[0] == 50


def test_a_task_without_post_decision_observations_is_refused_by_name_before_anything_is_made():
    cfg = TrainConfig(algo=PDPPOConfig(), env=EnvConfig(name="cartpole"), n_envs=2**40)
    said = "algo=pdppo needs post_obs, reward_split of every step, which env=cartpole does not tell.*lotsizing"
    with pytest.raises(ValueError, match=said):
        training_loop(cfg)
    with pytest.raises(ValueError, match=r"algo=pdppo needs post_obs.*CartPole does not tell"):
        PDPPO("MlpPolicy", "cartpole")
    with pytest.raises(ValueError, match="discrete actions"):
        PDPPOLearner(PDPPOConfig(), EnvSpec(3, 1, 0, 1, 1, 0, torch.device("cpu")))


@pytest.mark.parametrize(
    ("name", "value"), [("clip_range", 0.0), ("kept_rollouts", -1), ("critics", "triple"), ("vf_activation", "sine")]
)
def test_wrong_settings_are_refused_by_name(name, value):
    with pytest.raises(ValueError, match=f"PDPPOConfig.{name} must"):
        PDPPOConfig(**{name: value})


def test_the_python_class_learns_in_one_batch_saves_and_goes_on(tmp_path):
    settings: dict[str, Any] = {"n_steps": 20, "n_epochs": 2, "hidden": [8]}
    model = PDPPO("MlpPolicy", make_env(EnvConfig(name="slippery_lake"), 2, seed=0), seed=0, **settings)
    model.learn(80)
    assert model.cfg.n_minibatches == 1
    model.save(tmp_path / "lake")
    again = PDPPO.load(tmp_path / "lake", env="slippery_lake", n_envs=2)
    obs = model.get_env().reset()
    obs = obs if not isinstance(obs, Tensor) else obs.numpy()
    assert (model.predict(obs, deterministic=True)[0] == again.predict(obs, deterministic=True)[0]).all()
    again.learn(40)


PRESETS = {
    "pdppo/lotsizing": (4, 1_000_000, 40, "relu", "dual"),
    "pdppo/lotsizing_ppo": (4, 1_000_000, 40, "relu", "single"),
    "pdppo/slippery_lake": (5, 200_000, 50, "tanh", "dual"),
    "pdppo/slippery_lake_ppo": (5, 200_000, 50, "tanh", "single"),
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_presets_hold_the_constants_of_the_authors_code(name):
    cfg = typed(train_config(["algo=pdppo", f"experiment={name}"]))
    algo: Any = cfg.algo
    assert (cfg.n_envs, cfg.total_steps, algo.n_epochs, algo.activation, algo.critics) == PRESETS[name]
    assert cfg.n_envs * algo.n_steps == (500 if "lake" in name else 400)
    rest = (algo.gamma, algo.learning_rate, algo.vf_learning_rate, algo.ent_coef, algo.hidden, algo.kept_rollouts)
    assert rest == (0.9, 5.5e-4, 1e-3, 0.001, [128, 128], 5)
    assert (algo.n_minibatches, algo.normalize_advantage, algo.max_grad_norm, cfg.env.stagger) == (
        1,
        "none",
        None,
        False,
    )


@pytest.mark.parametrize("task", ["lotsizing", "slippery_lake"])
def test_ppo_takes_as_many_steps_and_epochs_as_pdppo(task):
    ppo, pdppo = (typed(train_config([f"algo={algo}", f"env={task}"])) for algo in ("ppo", "pdppo"))
    for name in ("n_steps", "n_epochs", "n_minibatches", "gamma", "learning_rate", "hidden", "max_grad_norm"):
        assert getattr(ppo.algo, name) == getattr(pdppo.algo, name), name
    assert (ppo.n_envs, ppo.total_steps) == (pdppo.n_envs, pdppo.total_steps)
    assert (ppo.algo.gae_lambda, ppo.algo.normalize_advantage) == (1.0, "none")


def swept(*words: str) -> list[Any]:
    """Configurations of the arms; every one has five seeds."""
    cells = cells_of(read_plan("lotsizing"), words)
    first = [cell for cell in cells if cell.seed == "0"]
    assert sorted(cell.seed for cell in cells) == sorted("01234" * len(first))
    return [typed(train_config(list(cell.words))) for cell in first]


def test_the_sweep_compares_the_authors_two_learners_on_two_plants_and_five_seeds_at_equal_steps():
    found = swept()
    assert {(cfg.env.size, cfg.algo.critics) for cfg in found} == set(product(("15x5", "20x10"), ("dual", "single")))
    assert {(cfg.total_steps, cfg.n_envs, cfg.algo.train_trunk) for cfg in found} == {(100_000, 4, False)}


def test_the_sweep_takes_the_library_s_ppo_at_as_many_steps():
    found = swept("algo=ppo", "experiment=ppo/lotsizing")
    assert len(found) == 2
    assert {(cfg.algo.name, cfg.total_steps, cfg.n_envs) for cfg in found} == {("ppo", 100_000, 4)}


def test_a_return_does_not_go_on_over_steps_that_a_callback_let_fall():
    class Stop(BaseCallback):
        def _on_step(self) -> bool:
            return self.num_timesteps < 16

    model = PDPPO("MlpPolicy", "lotsizing", n_envs=1, kept_rollouts=1, policy_kwargs={"net_arch": [8]}, n_steps=10)
    model.learn(30, Stop())
    kept = model.learner.kept
    assert kept is not None
    assert kept.truncated[-1].all()
