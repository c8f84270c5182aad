"""EXPO's update against the self-checks of its definition, and against the same steps written out by hand."""

import copy
import math
from typing import Any

import pytest
import torch
from by_hand import made, noise_rows, weights
from torch import nn

from ctrlrl.algos.expo import EXPOConfig
from ctrlrl.algos.generative_bc import DiffusionConfig, FlowConfig
from ctrlrl.algos.sac import SACConfig
from ctrlrl.functional.distributions import tanh_gaussian_sample
from ctrlrl.functional.learning_rate import warmup_cosine
from ctrlrl.functional.regression import td_target

SMALL = {"base_head": "mlp", "base_hidden": [8], "base_embed_dim": 8, "base_n_levels": 4, "base_sampling_steps": 4}


def expo(**settings: Any) -> Any:
    return made("expo", 3, 2, **{**SMALL, "hidden": [8], **settings})


def batch(n: int = 64) -> Any:
    return noise_rows(n, 3, 2, seed=7)


def parts(learner: Any) -> dict[str, torch.Tensor]:
    """The parameters of every part that moves on its own, as one vector each."""
    policy = learner.nets.policy
    named = {"critic": learner.nets.critic, "base": learner.nets.base, "edit": policy.edit}
    named |= {"acting base": policy.base.head, "target": policy.critic, "temperature": learner.nets.log_temperature}
    return {name: torch.cat([p.detach().reshape(-1) for p in net.parameters()]) for name, net in named.items()}


class Quadratic(nn.Module):
    """-(a - 0.28)^2, summed over the action, of two critics."""

    def forward(self, obs: torch.Tensor, action: torch.Tensor) -> torch.Tensor:
        return -(action - 0.28).square().sum(-1).expand(2, -1)


def test_twenty_critic_updates_come_with_one_of_base_edit_and_temperature():
    learner, moves = expo(), dict.fromkeys(parts(expo()), 0)
    for _ in range(20):
        before = parts(learner)
        learner.update(batch())
        for name, now in parts(learner).items():
            moves[name] += not torch.equal(now, before[name])
    assert moves == {"critic": 20, "target": 20, "base": 1, "acting base": 1, "edit": 1, "temperature": 1}


@pytest.mark.parametrize("n_min", [1, 2, 10])
def test_the_target_is_the_best_candidates_value_under_the_critics_that_chose_it(n_min):
    learner, data = expo(n_min=n_min), batch()
    torch.manual_seed(3)
    found = learner.target(data)
    torch.manual_seed(3)
    policy = learner.nets.policy
    with torch.no_grad():
        action = policy.candidates(data.next_obs, head=learner.nets.base)
        members = policy.members()
        q = torch.stack([policy.critic(data.next_obs, a)[members].amin(0) for a in action])
    assert action.shape == (16, 64, 2)
    assert len(members) == n_min
    torch.testing.assert_close(found, td_target(data.reward, data.terminated, q.amax(0), gamma=0.99))


def test_other_critics_may_value_than_choose():
    """The authors' code; with all critics there is no difference, else the value is never that of a better choice."""
    ends = []
    for redraw, n_min in ((False, 10), (True, 10), (False, 2), (True, 2)):
        learner = expo(redraw_members=redraw, n_min=n_min)
        torch.manual_seed(3)
        ends.append(learner.target(batch()))
    torch.testing.assert_close(ends[0], ends[1])
    assert not torch.equal(ends[2], ends[3])
    assert ends[3].mean() < ends[2].mean(), "choosing and valuing by one draw is the optimist"


def test_the_target_asks_the_trained_base_and_the_behaviour_its_average():
    obs, data = torch.randn(16, 3), batch(16)

    def both(learner: Any) -> tuple[torch.Tensor, torch.Tensor]:
        torch.manual_seed(5)
        target = learner.target(data)
        torch.manual_seed(5)
        return target, learner.act(obs).action

    plain = both(expo(n_edits=0))
    for name, changes in (("base", (True, False)), ("average", (False, True)), ("critic", (False, False))):
        learner = expo(n_edits=0)
        nets = learner.nets
        net = {"base": nets.base, "average": nets.policy.base.head, "critic": nets.critic}[name]
        for p in net.parameters():
            p.data.add_(0.3)
        assert tuple(not torch.equal(a, b) for a, b in zip(plain, both(learner), strict=True)) == changes, name
    learner = expo(n_edits=0)
    learner.nets.policy.critic.net[0].weight.data.neg_()
    assert all(not torch.equal(a, b) for a, b in zip(plain, both(learner), strict=True)), "both ask the target critics"


def test_how_it_acts_is_no_matter_of_the_target():
    ends, obs = [], torch.randn(16, 3)
    for settings in ({}, {"act_multiple": 4, "act_by_mean": True}):
        learner = expo(**settings)
        torch.manual_seed(5)
        target = learner.target(batch())
        torch.manual_seed(5)
        ends.append((target, learner.act(obs).action))
    assert torch.equal(ends[0][0], ends[1][0])
    assert not torch.equal(ends[0][1], ends[1][1])


def test_an_update_is_the_written_out_one_and_each_loss_moves_its_own_network_alone():
    settings = {"policy_delay": 1, "weight_decay": 0.01, "decay_steps": None, "base_tau": 0.1, "tau": 0.2}
    learner, twin, data = expo(**settings), expo(**settings), batch()
    start = parts(learner)
    torch.manual_seed(3)
    learner.update(data)

    nets, policy = twin.nets, twin.nets.policy
    torch.manual_seed(3)
    target = twin.target(data)
    critic, edit, alpha = (
        torch.optim.Adam(n.parameters(), lr=3e-4) for n in (nets.critic, policy.edit, nets.log_temperature)
    )
    base = torch.optim.AdamW(nets.base.parameters(), lr=3e-4, weight_decay=0.01)
    (nets.critic(data.obs, data.action) - target).square().mean().backward()
    critic.step()

    noise, uniform = torch.randn(64, 1, 2), torch.rand(64)
    k = (4 * uniform).long()
    process = policy.base.process
    x = process.alpha[k].view(-1, 1, 1) * data.action.unsqueeze(1) + process.sigma[k].view(-1, 1, 1) * noise
    said = nets.base(x, k.float(), data.obs)
    (said - noise).square().sum((1, 2)).mean().backward()
    base.step()

    mean, log_std = policy.edit(torch.cat((data.obs, data.action), -1))
    e, log_prob = tanh_gaussian_sample(mean, log_std, torch.randn_like(mean))
    q = nets.critic(data.obs, (data.action + 0.05 * e).clamp(-1, 1)).mean(0)
    edit.zero_grad()
    (log_prob - 2 * math.log(0.05) - q).mean().backward()
    edit.step()
    (nets.log_temperature().exp() * (-log_prob.detach().mean() + 1.0)).backward()  # H - H_target, H_target = -d / 2
    alpha.step()

    ours, theirs = parts(learner), parts(twin)
    for name in ("critic", "base", "edit", "temperature"):
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-5, atol=1e-6, msg=name)
    for name, of, rate in (("target", "critic", 0.2), ("acting base", "base", 0.1)):
        torch.testing.assert_close(ours[name], start[name].lerp(ours[of], rate), rtol=1e-5, atol=1e-6, msg=name)


def test_the_pull_of_q_on_the_edit_is_linear_in_its_scale():
    pulls = []
    for scale in (1e-3, 2e-3, 4e-3):
        learner = expo(edit_scale=scale, hidden=[])
        data = batch()
        data = data._replace(action=0.5 * data.action)  # no edit meets the box
        with torch.no_grad():
            learner.nets.log_temperature.value.fill_(-math.inf)  # no entropy
        learner.opt["edit"].apply = lambda grad: pulls.append(grad.clone())  # type: ignore[method-assign]
        torch.manual_seed(3)
        learner._edit_step(data)
    torch.testing.assert_close(pulls[1], 2.0 * pulls[0], rtol=1e-4, atol=1e-9)
    torch.testing.assert_close(pulls[2], 4.0 * pulls[0], rtol=1e-4, atol=1e-9)
    assert pulls[0].abs().max() > 1e-6


def test_the_edit_finds_the_top_of_a_known_value():
    """From 0.2 the top at 0.28 lies within a scale of 0.1 and beyond one of 0.05."""
    for scale, wanted in ((0.1, 0.28), (0.05, 0.25)):
        learner = expo(edit_scale=scale, learning_rate=1e-2, decay_steps=None, target_entropy=-1e3)
        learner.nets.critic = Quadratic()
        with torch.no_grad():
            learner.nets.log_temperature.value.fill_(-math.inf)
        data = batch(32)
        data = data._replace(action=torch.full_like(data.action, 0.2))
        for _ in range(400):
            learner._edit_step(data)
        obs, action = data.obs, data.action.unsqueeze(0)
        found = learner.nets.policy.edits(obs, action, deterministic=True)[0]
        assert (found - wanted).abs().mean() < 0.004


def test_the_entropy_and_its_target_are_of_the_same_action():
    """Uniform edits have the most entropy there is: the temperature falls, but with the authors' default target it
    rises for ever where scales are small."""
    assert expo().target_entropy == pytest.approx(-1.0 + 2 * math.log(0.05))
    assert expo(target_entropy=-3.0).target_entropy == pytest.approx(-3.0 + 2 * math.log(0.05))
    assert expo(adjust_target_entropy=False).target_entropy == -1.0
    most = 2 * math.log(2.0) + 2 * math.log(0.05)  # of the uniform edit of two numbers, scaled
    assert expo().target_entropy < most
    assert most < expo(adjust_target_entropy=False).target_entropy
    assert expo(adjust_target_entropy=False, edit_scale=0.7).target_entropy < 2 * math.log(2.0) + 2 * math.log(0.7)


def test_base_and_edit_slow_down_as_a_cosine_of_their_own_updates():
    learner = expo(policy_delay=2, decay_steps=4)
    for n in range(8):
        learner.update(batch(8))
        share = warmup_cosine(n // 2, warmup=0, total=4)
        for name in ("base", "edit"):
            assert float(learner.opt[name].learning_rate) == pytest.approx(3e-4 * share, rel=1e-6)
        assert float(learner.opt["critic"].learning_rate) == pytest.approx(3e-4)


def test_without_edits_the_edit_stays_as_it_is():
    learner = expo(policy_delay=1, n_edits=0)
    before = parts(learner)
    metrics = learner.update(batch())
    assert "loss/edit" not in metrics
    moved = {name for name, now in parts(learner).items() if not torch.equal(now, before[name])}
    assert moved == {"critic", "target", "base", "acting base"}


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # torch's compiler uses what torch deprecates
def test_compiled_updates_are_the_eager_ones():
    ends = []
    for mode in ("eager", "compile"):
        learner = expo(policy_delay=1)
        learner.set_compile(mode)
        torch.manual_seed(3)
        for _ in range(3):
            learner.update(batch())
        ends.append(parts(learner))
    for name, value in ends[0].items():
        torch.testing.assert_close(ends[1][name], value, rtol=1e-5, atol=1e-6, msg=name)


@pytest.mark.parametrize("kind", ["diffusion", "flow"])
@pytest.mark.parametrize("head", ["mlp", "residual"])
def test_every_base_learns_and_acts(kind, head):
    sampler = "euler" if kind == "flow" else "ddim"
    learner = expo(base_kind=kind, base_head=head, base_sampler=sampler, policy_delay=1)
    before = weights(learner, "base")
    assert 0.0 < float(learner.update(batch())["loss/base"]) < 20.0
    assert not torch.equal(weights(learner, "base"), before)
    assert learner.act(torch.randn(4, 3)).action.shape == (4, 2)


def test_the_data_sets_observations_become_the_bases_unit_box_but_not_those_of_a_pretrained_one():
    learner, data = expo(), batch()
    learner.prefit(data)
    unit = learner.nets.policy.base.obs_normalizer(data.obs)
    torch.testing.assert_close(unit.amax(0), torch.ones(3), rtol=0, atol=1e-5)
    other = expo()
    model = {f"policy.{k}": v for k, v in copy.deepcopy(learner.nets.policy.base).state_dict().items()}
    model |= {f"online.{k}": v + 1.0 for k, v in learner.nets.base.state_dict().items()}
    other.begin_with(model)
    other.prefit(data._replace(obs=5.0 * data.obs))
    assert torch.equal(other.nets.policy.base.obs_normalizer(data.obs), unit)
    torch.testing.assert_close(weights(other, "base"), weights(learner, "base") + 1.0)


def test_a_saved_learner_still_knows_that_its_base_was_cloned():
    saved, loaded = expo(), expo()
    saved.cloned = True
    loaded.load_training_state(saved.training_state())
    loaded.load_model_state(saved.model_state())
    before = loaded.nets.policy.base.obs_normalizer.scale.clone()
    loaded.prefit(batch()._replace(obs=5.0 * torch.randn(64, 3)))
    assert torch.equal(loaded.nets.policy.base.obs_normalizer.scale, before)


def test_the_form_of_a_base_comes_from_its_run():
    single = {"horizon": 1, "n_obs_steps": 1, "n_action_steps": 1}
    own = EXPOConfig.base_settings(DiffusionConfig(**single, hidden=[32], n_levels=20), "x")
    assert own["base_kind"] == "diffusion"
    assert own["base_hidden"] == [32]
    assert own["base_n_levels"] == 20
    assert own["base_schedule"] == "cosine"
    EXPOConfig(**own)
    flow = EXPOConfig.base_settings(FlowConfig(**single), "x")
    assert (flow["base_kind"], flow["base_sampler"]) == ("flow", "euler")
    EXPOConfig(**flow)


def test_the_sampler_that_takes_every_level_takes_no_number_of_steps():
    with pytest.raises(ValueError, match="base_sampling_steps=5: base_sampler=ddpm takes every one of base_n_levels"):
        EXPOConfig(base_sampling_steps=5)
    assert EXPOConfig(base_sampling_steps=5, base_sampler="ddim").base_sampling_steps == 5
    ancestral = DiffusionConfig(horizon=1, n_obs_steps=1, n_action_steps=1, n_levels=50, sampler="ddpm")
    assert EXPOConfig(**EXPOConfig.base_settings(ancestral, "x")).base_sampling_steps is None


def test_a_base_of_another_chunk_or_algorithm_is_refused_by_name():
    with pytest.raises(ValueError, match=r"=x has algo\.horizon=16 algo\.n_obs_steps=2 .* algo\.horizon=1 algo\.n_obs"):
        EXPOConfig.base_settings(DiffusionConfig(), "algo.base=x")
    with pytest.raises(ValueError, match=r"algo\.n_obs_steps=2 algo\.n_action_steps=1; a base says one action"):
        EXPOConfig.base_settings(FlowConfig(horizon=2, n_obs_steps=2, n_action_steps=1), "algo.base=x")
    single = {"horizon": 1, "n_obs_steps": 1, "n_action_steps": 1}
    with pytest.raises(ValueError, match=r"algo\.base=x has algo\.switches=\[1\]"):
        EXPOConfig.base_settings(FlowConfig(**single, switches=[1]), "algo.base=x")
    with pytest.raises(ValueError, match=r"algo\.base=x has algo\.obs_columns=\[0\]; a base sees whole observations"):
        EXPOConfig.base_settings(FlowConfig(**single, obs_columns=[0]), "algo.base=x")
    with pytest.raises(ValueError, match=r"algo\.base=x is a run of algo=sac; a base is one of algo=diffusion or"):
        EXPOConfig.base_settings(SACConfig(), "algo.base=x")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"n_edits": 9}, r"n_edits must lie in 0 \.\.\. n_samples=8, got 9"),
        ({"n_min": 11}, r"n_min must lie in 1 \.\.\. n_critics=10, got 11"),
        ({"act_multiple": 0}, r"act_multiple must be at least 1, got 0"),
        ({"edit_scale": 0.0}, r"edit_scale must lie in \(0, inf\), got 0\.0"),
        ({"base_kind": "flow"}, r"base_sampler of base_kind=flow must be euler or midpoint, got 'ddpm'"),
        ({"base_hidden": [8, 16]}, r"base_hidden: the blocks of base_head=residual have one width"),
        ({"base_head": "unet"}, r"base_head must be one of mlp, residual, got 'unet'"),
        ({"base_prediction": "velocity"}, r"base_prediction of base_kind=diffusion must be one of noise, data, v, got"),
    ],
)
def test_settings_that_cannot_be_are_refused_by_name(settings, said):
    with pytest.raises(ValueError, match=said):
        EXPOConfig(**settings)
