import copy
import math

import pytest
import torch
from torch import Tensor
from torch.distributions import Normal

from ctrlrl.algos.cql import CQLConfig, CQLLearner, q_of_many
from ctrlrl.nn.critics import QCritic
from ctrlrl.types import EnvSpec, Transition

N, OBS, ACT, SAMPLES = 6, 3, 2, 3
SPEC = EnvSpec(OBS, ACT, 0, 1, 1, 100, torch.device("cpu"))
SMALL = {"hidden": [8, 8], "n_samples": SAMPLES, "learning_rate": 1e-2, "critic_learning_rate": 1e-2, "tau": 0.1}


def learner(seed: int = 0, **changes) -> CQLLearner:
    torch.manual_seed(seed)
    return CQLLearner(CQLConfig(**{**SMALL, **changes}), SPEC)


def batch(seed: int = 1) -> Transition:
    g = torch.Generator().manual_seed(seed)
    obs, next_obs = torch.randn(2, N, OBS, generator=g)
    action = 2.0 * torch.rand(N, ACT, generator=g) - 1.0
    terminated = torch.arange(N) % 3 == 0
    return Transition(obs, action, torch.randn(N, generator=g), next_obs, terminated, {})


def values(module: torch.nn.Module) -> Tensor:
    return torch.cat([p.detach().reshape(-1) for p in module.parameters()])


class WrittenOut:
    """The update as the authors have it, one state at a time, with torch's own distributions and Adam."""

    def __init__(self, nets, cfg: CQLConfig):
        self.cfg = cfg
        self.policy = copy.deepcopy(nets.policy)
        self.q = [copy.deepcopy(head) for head in nets.critic.heads]
        self.target = [copy.deepcopy(head) for head in nets.critic.heads]
        self.log_alpha = torch.zeros((), requires_grad=True)
        self.log_weight = torch.ones((), requires_grad=True)
        self.adams = [
            torch.optim.Adam([*self.policy.parameters(), self.log_alpha], cfg.learning_rate),
            torch.optim.Adam([*self.q[0].parameters(), *self.q[1].parameters()], cfg.critic_learning_rate),
            torch.optim.Adam([self.log_weight], cfg.critic_learning_rate),
        ]

    def act(self, obs: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.policy(obs)
        u = mean + log_std.exp() * noise
        return u.tanh(), (Normal(mean, log_std.exp()).log_prob(u) - (1.0 - u.tanh() ** 2).log()).sum()

    def update(self, data: Transition) -> None:
        cfg = self.cfg
        noise = torch.randn(N, ACT)
        target_noise = torch.randn(SAMPLES if cfg.max_target_backup else 1, N, ACT)
        after_noise, here_noise = torch.randn(SAMPLES, N, ACT), torch.randn(SAMPLES, N, ACT)
        uniform = 2.0 * torch.rand(SAMPLES, N, ACT) - 1.0
        alpha, weight = self.log_alpha.exp(), self.log_weight.exp().clamp(0.0, 1e6)
        policy_loss, alpha_loss, td, gaps = 0.0, 0.0, [0.0, 0.0], [0.0, 0.0]
        for i in range(N):
            s, after = data.obs[i], data.next_obs[i]
            a, log_pi = self.act(s, noise[i])
            least = min(q(torch.cat((s, a))).squeeze() for q in self.q)
            policy_loss = policy_loss + (alpha.detach() * log_pi - least) / N
            alpha_loss = alpha_loss - self.log_alpha * (log_pi.detach() - ACT) / N
            with torch.no_grad():
                choices = [self.act(after, z[i])[0] for z in target_noise]
                best = max(min(q(torch.cat((after, c))).item() for q in self.target) for c in choices)
                y = data.reward[i] + cfg.gamma * (0.0 if data.terminated[i] else best)
                asked = [(uniform[k, i], torch.tensor(ACT * math.log(0.5))) for k in range(SAMPLES)]
                asked += [self.act(after, z[i]) for z in after_noise] + [self.act(s, z[i]) for z in here_noise]
            for k, q in enumerate(self.q):
                at_data = q(torch.cat((s, data.action[i]))).squeeze()
                ood = torch.stack([q(torch.cat((s, c))).squeeze() - log_mu for c, log_mu in asked])
                td[k] = td[k] + (at_data - y) ** 2 / N
                heat = cfg.softmax_temperature
                gaps[k] = gaps[k] + (heat * (ood / heat).exp().sum().log() - at_data) / N
        penalty = [cfg.conservative_coef * gap for gap in gaps]
        if cfg.target_gap is not None:
            penalty = [weight.detach() * (p - cfg.conservative_coef * cfg.target_gap) for p in penalty]
        excess = sum(cfg.conservative_coef * (gap.detach() - (cfg.target_gap or 0.0)) for gap in gaps)
        critics = [p for q in self.q for p in q.parameters()]
        gradients = [
            (list(self.policy.parameters()), policy_loss),
            (critics, sum(td) + sum(penalty)),
            ([self.log_alpha], alpha_loss),
            ([self.log_weight], -0.5 * weight * excess),
        ]
        for params, loss in gradients:
            for p, g in zip(params, torch.autograd.grad(loss, params), strict=True):
                p.grad = g
        for adam in self.adams[: 3 if cfg.target_gap is not None else 2]:
            adam.step()
        for theirs, ours in zip(self.target, self.q, strict=True):
            for t, p in zip(theirs.parameters(), ours.parameters(), strict=True):
                t.data += cfg.tau * (p.data - t.data)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"max_target_backup": True},
        {"softmax_temperature": 2.0},
        {"target_gap": 0.5, "conservative_coef": 5.0},
        {"critic_hidden": [6], "policy_init": "orthogonal"},
    ],
    ids=str,
)
def test_updates_equal_the_written_out_ones(changes):
    ours = learner(**changes)
    with torch.no_grad():  # weights off their tiny start: now every term reaches every parameter
        for p in [*ours.nets.policy.parameters(), *ours.nets.critic.parameters()]:
            p.add_(0.3 * torch.randn_like(p))
        ours.nets.target.load_state_dict(ours.nets.critic.state_dict())
    theirs = WrittenOut(ours.nets, ours.cfg)
    for seed in (5, 6, 7):
        torch.manual_seed(seed)
        ours.update(batch(seed))
        torch.manual_seed(seed)
        theirs.update(batch(seed))
    near = {"rtol": 0, "atol": 2e-4}
    torch.testing.assert_close(values(ours.nets.policy), values(theirs.policy), **near)
    torch.testing.assert_close(values(ours.nets.critic), torch.cat([values(q) for q in theirs.q]), **near)
    torch.testing.assert_close(values(ours.nets.target), torch.cat([values(q) for q in theirs.target]), **near)
    torch.testing.assert_close(ours.nets.log_temperature(), theirs.log_alpha, **near)
    if "target_gap" in changes:
        torch.testing.assert_close(ours.nets.log_weight(), theirs.log_weight, **near)


def test_the_temperature_learns_at_the_policys_rate_and_the_penaltys_weight_at_the_critics():
    ours = learner(target_gap=0.5, learning_rate=3e-5, critic_learning_rate=3e-4)
    rates = {name: step.learning_rate.item() for name, step in ours.opt.items()}
    expected = {"policy": 3e-5, "log_temperature": 3e-5, "critic": 3e-4, "log_weight": 3e-4}
    assert rates == pytest.approx(expected)


def test_the_policy_has_a_rate_of_its_own_after_the_updates_on_data():
    rows, trained = batch(), learner(policy_lr_online=1e-6)

    def rates() -> list[float]:
        trained.update(rows)
        return [trained.opt[name].learning_rate.item() for name in ("policy", "log_temperature", "critic")]

    usual = [trained.cfg.learning_rate, trained.cfg.learning_rate, trained.cfg.critic_learning_rate]
    assert rates() == pytest.approx(usual)  # in the environment from the beginning
    trained.set_progress(0.0)
    assert rates() == pytest.approx(usual)
    trained.begin_online()
    assert rates() == pytest.approx([1e-6, *usual[1:]])
    cut, state = trained, trained.training_state()
    trained = learner(policy_lr_online=1e-6)
    trained.load_model_state(cut.model_state())
    trained.resume(state)
    assert rates() == pytest.approx([1e-6, *usual[1:]])
    trained.set_hyper("policy_lr_online", None)
    assert rates() == pytest.approx(usual)
    trained.set_hyper("policy_lr_online", 1e-6)
    trained.set_progress(0.5)
    assert rates() == pytest.approx(usual)


def test_the_penalty_moves_the_critics_and_not_the_policy():
    free, bound = learner(conservative_coef=0.0), learner(conservative_coef=100.0)
    for each in (free, bound):
        torch.manual_seed(3)
        each.update(batch())
    assert torch.equal(values(free.nets.policy), values(bound.nets.policy))
    assert torch.equal(free.nets.log_temperature(), bound.nets.log_temperature())
    assert not torch.equal(values(free.nets.critic), values(bound.nets.critic))


def test_critics_do_not_feel_the_policys_step_of_the_same_update():
    slow, fast = learner(learning_rate=1e-6), learner(learning_rate=1.0)
    for each in (slow, fast):
        torch.manual_seed(3)
        each.update(batch())
    assert torch.equal(values(slow.nets.critic), values(fast.nets.critic))


@pytest.mark.parametrize(("target_gap", "sign"), [(-1000.0, 1), (1000.0, -1)])
def test_a_gap_above_its_target_raises_the_penaltys_weight(target_gap, sign):
    ours = learner(target_gap=target_gap)
    assert ours.nets.log_weight().item() == 1.0
    ours.update(batch())
    assert math.copysign(1, ours.nets.log_weight().item() - 1.0) == sign


def test_the_learned_weight_of_the_penalty_has_an_upper_bound():
    ours = learner(target_gap=-1000.0)
    with torch.no_grad():
        ours.nets.log_weight.value.fill_(20.0)  # e^20 = 4.9e8
    before = ours.nets.log_weight().item()
    ours.update(batch())
    assert ours.nets.log_weight().item() == before


def test_the_temperature_falls_while_the_policy_is_more_random_than_minus_one_nat_a_dimension():
    ours = learner()
    metrics = ours.update(batch())
    assert metrics["policy/entropy"] > -ACT
    assert metrics["policy/temperature"] == 1.0
    assert ours.nets.log_temperature() < 0.0


@pytest.mark.parametrize(("name", "bound"), [("gap_max", -1e3), ("gap_min", 1e3)])
def test_bounds_on_the_gap_silence_the_penalty_beyond_them(name, bound):
    free, clipped = learner(conservative_coef=0.0), learner(conservative_coef=5.0, **{name: bound})
    for each in (free, clipped):
        torch.manual_seed(3)
        metrics = each.update(batch())
    assert metrics["value/gap"] == bound
    assert torch.equal(values(free.nets.critic), values(clipped.nets.critic))


def test_many_actions_a_state_have_the_values_that_they_have_alone():
    critic = QCritic(OBS, ACT, [8])
    obs, action = torch.randn(N, OBS), torch.randn(5, N, ACT)
    q = q_of_many(critic, obs, action)
    assert q.shape == (2, 5, N)
    for m in range(5):
        torch.testing.assert_close(q[:, m], critic(obs, action[m]))


def test_initial_values_and_means_are_small():
    ours, data = learner(hidden=[64, 64]), batch()
    assert ours.nets.critic(data.obs, data.action).abs().max() < 0.2
    assert ours.nets.policy(data.obs)[0].abs().max() < 0.05
    assert (ours.nets.policy(data.obs)[1] + 1.0).abs().max() < 0.05


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"gamma": 1.5}, "gamma"),
        ({"conservative_coef": -1.0}, "conservative_coef"),
        ({"softmax_temperature": 0.0}, "softmax_temperature"),
        ({"n_samples": 0}, "n_samples"),
        ({"gap_min": 1.0, "gap_max": 0.0}, "gap_min"),
        ({"policy_init": "zeros"}, "policy_init"),
        ({"critic_learning_rate": 0.0}, "critic_learning_rate"),
        ({"policy_lr_online": -1e-4}, "policy_lr_online"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused_by_name(changes, said):
    with pytest.raises(ValueError, match=f"CQLConfig.*{said}"):
        CQLConfig(**changes)
