import pytest
import torch

from ctrlrl.functional.returns import discounted_returns, discounted_sums, egae, gae, lambda_returns, n_step, next_valid

F64 = torch.float64


def close(actual, expected, atol=1e-9):
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)


def column(*values):
    return torch.tensor(values, dtype=F64)[:, None]


def flags(*values):
    return torch.tensor(values, dtype=torch.bool)[:, None]


def random_rollout(steps=100, n_envs=5, seed=0):
    torch.manual_seed(seed)
    reward, value, next_value = (torch.randn(steps, n_envs, dtype=F64) for _ in range(3))
    terminated = torch.rand(steps, n_envs) < 0.1
    truncated = (torch.rand(steps, n_envs) < 0.1) & ~terminated
    return reward, value, next_value, terminated, truncated


def gae_by_hand(reward, value, next_value, terminated, truncated, gamma, lam, mask=None):
    advantage = torch.zeros_like(value)
    for b in range(value.shape[1]):
        later = 0.0
        for t in reversed(range(value.shape[0])):
            term, trunc = bool(terminated[t, b]), bool(truncated[t, b])
            later = 0.0 if term or trunc else later
            if mask is not None and not mask[t, b]:
                continue
            bootstrap = 0.0 if term else next_value[t, b].item()
            later = reward[t, b].item() + gamma * bootstrap - value[t, b].item() + gamma * lam * later
            advantage[t, b] = later
    return advantage


def test_gae_numbers_of_the_specification():
    reward, value = column(1, 1, 1), column(0.5, 0.5, 0.5)
    never = flags(0, 0, 0)
    advantage, target = gae(reward, value, value, never, never, gamma=0.9, gae_lambda=0.8)
    close(advantage, column(2.12648, 1.634, 0.95))
    close(target, advantage + 0.5)
    advantage, _ = gae(reward, value, value, flags(0, 1, 0), never, gamma=0.9, gae_lambda=0.8)
    close(advantage, column(1.31, 0.5, 0.95))


def test_gae_equals_a_float64_loop_with_both_kinds_of_ends():
    rollout = random_rollout()
    advantage, target = gae(*rollout, gamma=0.97, gae_lambda=0.9)
    close(advantage, gae_by_hand(*rollout, 0.97, 0.9))
    close(target, advantage + rollout[1])


def test_exact_values_give_zero_advantage_even_across_truncations():
    gamma, shape = 0.9, (20, 4)
    value = torch.full(shape, 1.0 / (1.0 - gamma), dtype=F64)  # reward 1 for ever
    truncated = torch.rand(shape) < 0.3
    never = torch.zeros_like(truncated)
    advantage, _ = gae(torch.ones_like(value), value, value, never, truncated, gamma=gamma, gae_lambda=0.95)
    close(advantage, torch.zeros(shape, dtype=F64), atol=1e-12)


def test_lambda_one_gives_discounted_sums_whatever_the_values_inside():
    reward, value, _, _, _ = random_rollout(30)
    next_value = torch.cat([value[1:], torch.randn(1, 5, dtype=F64)])
    never = torch.zeros(30, 5, dtype=torch.bool)
    _, target = gae(reward, value, next_value, never, never, gamma=0.9, gae_lambda=1.0)
    powers = 0.9 ** torch.arange(30, dtype=F64)
    expected = torch.stack(
        [(powers[: 30 - t, None] * reward[t:]).sum(0) + 0.9 ** (30 - t) * next_value[-1] for t in range(30)]
    )
    close(target, expected)
    close(discounted_returns(reward, never, never, gamma=0.9, bootstrap=next_value), expected)


def test_lambda_zero_gives_the_td_error():
    reward, value, next_value, terminated, truncated = random_rollout()
    advantage, _ = gae(reward, value, next_value, terminated, truncated, gamma=0.9, gae_lambda=0.0)
    close(advantage, reward + 0.9 * next_value * (~terminated) - value)


def test_termination_drops_the_bootstrap_and_truncation_keeps_it():
    reward, value, next_value = column(1, 1), column(0, 0), column(10, 0)
    close(gae(reward, value, next_value, flags(1, 0), flags(0, 0), gamma=0.5, gae_lambda=1.0)[0], column(1, 1))
    close(gae(reward, value, next_value, flags(0, 0), flags(1, 0), gamma=0.5, gae_lambda=1.0)[0], column(6, 1))


def test_nothing_after_an_episode_end_reaches_back_over_it():
    reward, value, next_value, terminated, truncated = random_rollout(20)
    truncated[9] = ~terminated[9]
    before, _ = gae(reward, value, next_value, terminated, truncated, gamma=0.9, gae_lambda=0.95)
    reward[10:] += 100.0
    after, _ = gae(reward, value, next_value, terminated, truncated, gamma=0.9, gae_lambda=0.95)
    assert torch.equal(before[:10], after[:10])


def test_a_value_that_is_not_finite_after_termination_is_not_read():
    reward, value, never = column(1, 1), column(0, 0), flags(0, 0)
    advantage, _ = gae(reward, value, column(float("nan"), 2), flags(1, 0), never, gamma=0.5, gae_lambda=0.9)
    close(advantage, column(1, 2))


def test_masked_steps_have_zero_advantage_and_pass_the_trace_through():
    rollout = random_rollout()
    mask = torch.rand(100, 5) < 0.6
    advantage, target = gae(*rollout, gamma=0.97, gae_lambda=0.9, mask=mask)
    close(advantage, gae_by_hand(*rollout, 0.97, 0.9, mask))
    assert not advantage[~mask].any()
    assert torch.equal(target[~mask], rollout[1][~mask])


def test_inserting_masked_steps_changes_no_advantage():
    reward, value = column(0, 0, 1), column(0.2, 0.4, 0.8)
    ends, never = flags(0, 0, 1), flags(0, 0, 0)
    next_value = torch.cat([value[1:], column(0.0)])
    plain, _ = gae(reward, value, next_value, ends, never, gamma=0.9, gae_lambda=0.8)
    at = [0, 3, 4]  # two tokens of a tool after the first, one pad after the end
    mask = flags(1, 0, 0, 1, 1, 0)
    wide = {k: torch.full((6, 1), float("nan"), dtype=F64) for k in ("reward", "value")}
    wide["reward"][at], wide["value"][at] = reward, value
    wide_ends = flags(0, 0, 0, 0, 1, 0)
    later = next_valid(wide["value"], mask)
    padded, _ = gae(
        **wide,
        next_value=later,
        terminated=wide_ends,
        truncated=~mask & mask,
        gamma=0.9,
        gae_lambda=0.8,
        mask=mask,
    )
    close(padded[at], plain)


def test_token_numbers_of_the_specification():
    value, never = column(0.2, 0.4, 0.5, 0.8), flags(0, 0, 0, 0)
    next_value = torch.cat([value[1:], column(0.0)])
    reward, ends = column(0, 0, 0, 1), flags(0, 0, 0, 1)
    close(gae(reward, value, next_value, ends, never, gamma=1.0, gae_lambda=1.0)[0], column(0.8, 0.6, 0.5, 0.2))
    close(
        gae(reward, value, next_value, ends, never, gamma=1.0, gae_lambda=0.95)[0], column(0.737225, 0.5655, 0.49, 0.2)
    )
    unfinished, _ = egae(0.0 * reward, value, next_value, never, ends, gamma=1.0, gae_lambda=0.95)
    close(unfinished, column(0.56575, 0.385, 0.3, 0))


def test_egae_of_a_complete_response_is_gae():
    reward, value, next_value, terminated, _ = random_rollout()
    never = torch.zeros_like(terminated)
    args = (reward, value, next_value, terminated, never)
    assert torch.equal(egae(*args, gamma=0.9, gae_lambda=0.8)[0], gae(*args, gamma=0.9, gae_lambda=0.8)[0])


def test_egae_with_discount_pays_gamma_minus_one_times_the_last_value():
    advantage, _ = egae(column(2.0), column(5.0), column(99.0), flags(0), flags(1), gamma=0.9, gae_lambda=0.8)
    close(advantage, column(2.0 + (0.9 - 1.0) * 5.0))


def test_next_valid_skips_masked_steps_and_ends_in_zero():
    x, mask = column(1, 2, 3, 4, 5), flags(1, 0, 0, 1, 0)
    close(next_valid(x, mask), column(4, 4, 4, 0, 0))
    everything = torch.ones_like(mask)
    close(next_valid(x, everything), column(2, 3, 4, 5, 0))


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_k_discounts_in_one_call_equal_k_calls(gae_lambda):
    reward, _, _, terminated, truncated = random_rollout()
    gammas = torch.tensor([0.5, 0.9, 0.99, 0.999], dtype=F64)
    value, next_value = (torch.randn(100, 5, 4, dtype=F64) for _ in range(2))
    together, target = gae(
        reward[..., None], value, next_value, terminated, truncated, gamma=gammas, gae_lambda=gae_lambda
    )
    assert together.shape == (100, 5, 4)
    for k, gamma in enumerate(gammas.tolist()):
        one, one_target = gae(
            reward, value[..., k], next_value[..., k], terminated, truncated, gamma=gamma, gae_lambda=gae_lambda
        )
        close(together[..., k], one)
        close(target[..., k], one_target)
    wide_flags = terminated[..., None], truncated[..., None]
    again, _ = gae(reward[..., None], value, next_value, *wide_flags, gamma=gammas, gae_lambda=gae_lambda)
    assert torch.equal(again, together)


@pytest.mark.parametrize("gae_lambda", [0.0, 0.7, 1.0])
def test_lambda_returns_are_the_target_of_gae(gae_lambda):
    reward, value, next_value, terminated, truncated = random_rollout()
    # inside an episode the value after a step is the value of the next step
    done = terminated | truncated
    inside = torch.cat([~done[:-1], torch.zeros(1, 5, dtype=torch.bool)])
    next_value = torch.where(inside, torch.cat([value[1:], value[:1]]), next_value)
    _, target = gae(reward, value, next_value, terminated, truncated, gamma=0.9, gae_lambda=gae_lambda)
    returns = lambda_returns(reward, next_value, terminated, truncated, gamma=0.9, gae_lambda=gae_lambda)
    close(returns, target)


def test_discounted_returns_bootstrap_only_at_truncations_and_the_last_row():
    reward, bootstrap = column(1, 2, 3, 4, 5), column(10, 20, 30, 40, 50)
    result = discounted_returns(reward, flags(0, 1, 0, 0, 0), flags(0, 0, 0, 1, 0), gamma=0.5, bootstrap=bootstrap)
    close(result, column(2, 2, 3 + 0.5 * (4 + 20), 4 + 20, 5 + 25))
    close(discounted_returns(reward, flags(0, 1, 0, 0, 0), flags(0, 0, 0, 1, 0), gamma=0.5), column(2, 2, 5, 4, 5))


def test_one_step_is_the_td_target_and_many_steps_are_the_discounted_return():
    reward, _, next_value, terminated, truncated = random_rollout(20)
    ends = {"terminated": terminated, "truncated": truncated, "gamma": 0.9}
    close(n_step(reward, next_value, n=1, **ends), reward + 0.9 * next_value * (~terminated))
    close(n_step(reward, next_value, n=25, **ends), discounted_returns(reward, bootstrap=next_value, **ends))


def test_three_steps_by_hand_stop_at_ends_and_at_the_last_row():
    reward, next_value = column(1, 2, 3, 4, 5), column(10, 20, 30, 40, 50)
    result = n_step(reward, next_value, flags(0, 0, 0, 0, 0), flags(0, 0, 0, 1, 0), gamma=0.5, n=3)
    close(result, column(1 + 1 + 0.75 + 3.75, 2 + 1.5 + 1 + 5, 3 + 2 + 10, 4 + 20, 5 + 25))
    result = n_step(reward, next_value, flags(0, 0, 0, 1, 0), flags(0, 0, 0, 0, 0), gamma=0.5, n=3)
    close(result, column(1 + 1 + 0.75 + 3.75, 2 + 1.5 + 1, 3 + 2, 4, 5 + 25))
    with pytest.raises(ValueError, match=r"n_step\.n must be >= 1, got 0"):
        n_step(reward, next_value, flags(0, 0, 0, 0, 0), flags(0, 0, 0, 1, 0), gamma=0.5, n=0)


def test_a_forgotten_value_axis_is_refused_instead_of_broadcast():
    zeros, never = torch.zeros(3, 4), torch.zeros(3, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match=r"gae: shapes must match.*use \.squeeze\(-1\)"):
        gae(zeros, zeros[..., None], zeros[..., None], never, never, gamma=0.9, gae_lambda=0.9)
    with pytest.raises(ValueError, match=r"lambda_returns: shapes must match"):
        lambda_returns(zeros, torch.zeros(3, 5), never, never, gamma=0.9, gae_lambda=0.9)
    three, four = torch.zeros(3, 4, 3), torch.zeros(3, 4, 4)
    with pytest.raises(ValueError, match=r"gae: shapes must match"):
        gae(three, four, four, never, never, gamma=0.9, gae_lambda=0.9)


@pytest.mark.parametrize("steps", [1, 7, 100])
def test_running_sums_are_a_forward_loop_that_starts_anew_after_each_end(steps):
    torch.manual_seed(0)
    reward, done = torch.randn(steps, 5, dtype=F64), torch.rand(steps, 5) < 0.2
    initial, expected = torch.randn(5, dtype=F64), torch.zeros(steps, 5, dtype=F64)
    running = initial
    for t in range(steps):
        running = reward[t] + 0.9 * running
        expected[t] = running
        running = torch.where(done[t], 0.0, running)
    close(discounted_sums(reward, done, initial, gamma=0.9), expected)


def test_flags_are_left_alone():
    reward, _, next_value, terminated, truncated = random_rollout(4)
    before = terminated.clone(), truncated.clone()
    lambda_returns(reward, next_value, terminated, truncated, gamma=0.9, gae_lambda=0.9)
    discounted_returns(reward, terminated, truncated, gamma=0.9)
    assert torch.equal(terminated, before[0])
    assert torch.equal(truncated, before[1])
