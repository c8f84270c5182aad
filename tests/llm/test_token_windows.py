"""Responses written a window at a time: every token is learned from once, and judged when the response is over."""

import pytest
import torch

from ctrlrl.llm.config import TokenConfig
from ctrlrl.llm.presets import preset
from tests.llm.small_models import EOS, PAD, Bigram, env, loop_of, state


def rounds(n, *, window=2, longest=5, words=("ab", "fcd"), **options):
    task = env(4, words=list(words), max_new_tokens=longest, **options)
    loop = loop_of("tppo", task=task, window=window, max_tokens=longest, steps=10**6)
    torch.manual_seed(1)
    return loop, [loop.collect() for _ in range(n)]


def test_a_response_is_written_in_windows_and_over_at_the_longest_length():
    _, found = rounds(3)
    first_ones = torch.ones(4, dtype=torch.bool)  # slots that hold the response they began with
    for batch, end in zip(found, (2, 4, 5), strict=True):
        assert (batch.mask.sum(1) == end)[first_ones & ~(batch.ids == EOS).any(1)].all()
        first_ones &= ~batch.ended
    assert not first_ones.any()
    first, second, third = (batch.window.sum(1) for batch in found)
    whole = ~(found[0].ended | found[1].ended)
    assert whole.any()
    for count, wanted in ((first, 2), (second, 2), (third, 1)):
        assert (count[whole] == wanted).all()
    assert found[2].ended[whole].all()
    assert not found[0].ended[whole].any()


def test_what_was_written_stays_and_only_the_window_is_new():
    _, (one, two) = rounds(2)
    on = ~one.ended
    assert torch.equal(one.ids[on][:, :2], two.ids[on][:, :2])
    assert not (two.window & one.window)[on].any()
    assert torch.equal(two.mask[on], (one.mask | two.window)[on])
    assert (two.window.sum(1)[~on] == two.mask.sum(1)[~on]).all()  # those began anew


def test_the_next_window_is_what_the_model_says_after_all_that_was_written():
    """Greedy windows of two make the greedy response that is written at once."""
    loop, _ = rounds(0, window=2, longest=6)
    learner, task = loop.learner, loop.env

    class Greedy:
        cfg = learner.cfg

        @staticmethod
        def prompt_weight(n):
            return None

        @staticmethod
        def respond(ids, mask, *, n, max_new_tokens):
            return learner.respond(ids, mask, n=n, max_new_tokens=max_new_tokens, greedy=True)

    last = [loop.unfinished.round(Greedy, task, torch.ones(1)) for _ in range(3)][-1]
    begun = last.mask.sum(1) > 4
    asked = task.asked(task.prompts, last.prompt.cpu())
    whole = learner.respond(asked.ids, asked.mask, n=1, max_new_tokens=6, greedy=True)
    assert begun.any()
    assert torch.equal(last.ids.where(last.mask, PAD)[begun], whole.ids[begun])


def test_rewards_come_with_the_end_and_steps_count_responses_that_are_over():
    loop, found = rounds(4, rewards=lambda completions, **_: [1.0] * len(completions))
    for batch in found:
        assert torch.equal(batch.reward > 0, batch.ended)
    assert loop.env_steps == sum(int(batch.ended.sum()) for batch in found)
    told = loop.recent[2]
    assert told["reward/mean"] == pytest.approx(1.0)
    assert "reward/mean" not in loop.recent[0] or found[0].ended.any()


def test_the_policy_learns_the_window_and_the_critic_all_tokens_of_what_is_over():
    loop, (_, _, batch) = rounds(3)
    rows, _ = loop.learner._prepared(batch)
    n = rows.mask.shape[1]
    assert torch.equal(rows.mask, batch.window[:, :n])
    assert torch.equal(rows.value_mask, (batch.mask & batch.ended.unsqueeze(1))[:, :n])
    torch.testing.assert_close(rows.returns.where(rows.value_mask, 0.0), batch.reward.unsqueeze(1) * rows.value_mask)
    counted = rows.advantage[rows.mask]
    torch.testing.assert_close(counted.mean(), torch.tensor(0.0), rtol=0, atol=1e-6)  # whitened over the window alone


def test_a_window_as_long_as_the_response_is_an_ordinary_round():
    _, found = rounds(2, window=5)
    for batch in found:
        assert batch.ended.all()
        assert torch.equal(batch.window, batch.mask)


def test_what_is_under_way_comes_back_with_the_loop_state():
    loop, _ = rounds(2)
    other, _ = rounds(0)
    other.load_state_dict({k: v.clone() for k, v in loop.state_dict().items()})
    assert set(loop.unfinished.state) <= {k.removeprefix("env/") for k in loop.state_dict()}
    torch.manual_seed(7)
    one = loop.collect()
    torch.manual_seed(7)
    assert torch.equal(one.ids, other.collect().ids)


def test_it_learns():
    """`a` is paid for; a bigram's logits move to it through windows of one token."""
    model = Bigram()
    torch.nn.init.zeros_(model.table.weight)
    with pytest.raises(ValueError, match="learns values"):
        loop_of("tppo", model=model)
    loop = loop_of(
        "tppo", task=env(64, rewards=lambda completions, **_: [c.count("a") / 3 for c in completions]), window=1,
        learning_rate=1e-2, steps=10**6,
    )  # fmt: skip
    rewards = []
    for _ in range(30):
        loop.iterate()
        rewards.append(loop.recent[-1].get("reward/mean", 0.0))
    assert sum(rewards[-4:]) > 2 * sum(rewards[:8]) / 2
    assert all(torch.isfinite(x).all() for x in state(loop.learner).values())


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"window": 0}, "window must be at least 1"),
        ({"advantage": "gae"}, "window=64 takes advantage=egae and group_size=1"),
        ({"group_size": 2}, "window=64 takes advantage=egae and group_size=1"),
    ],
)
def test_what_does_not_fit_a_window_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        preset("tppo", **changes)
    assert TokenConfig().window is None


def test_an_engine_that_writes_whole_responses_is_refused():
    from ctrlrl.llm.learner import TokenLearner
    from tests.llm.small_models import llama

    task = env(4)
    with pytest.raises(ValueError, match=r"algo\.window=64: an engine writes whole responses"):
        TokenLearner(preset("tppo"), task.spec, model=llama(), eos=task.eos, pad=task.pad, engine=lambda **_: None)
