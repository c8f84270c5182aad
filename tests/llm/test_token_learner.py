"""What every method for tokens promises. A new preset is tested here without a change."""

import math

import pytest
import torch
from torch import nn

from ctrlrl.core.ranks import Ranks
from ctrlrl.llm.batches import joined
from ctrlrl.llm.methods import LEARNERS
from ctrlrl.llm.presets import PRESETS
from ctrlrl.registry import ALGORITHMS, TOKEN_METHODS
from tests.llm.small_models import EOS, TOKENIZER, Bigram, env, llama, loop_of, state

on_every_method = pytest.mark.parametrize("method", list(PRESETS))


def test_every_preset_is_a_learner_and_an_algorithm():
    assert list(PRESETS) == list(LEARNERS) == list(TOKEN_METHODS)
    for name, kind in LEARNERS.items():
        assert kind.config().name == name
        assert ALGORITHMS[name] == f"ctrlrl.llm.methods:{name}"


@on_every_method
def test_metrics_are_finite_and_the_weights_move(method):
    loop = loop_of(method, n_epochs=2)
    before = state(loop.learner)
    metrics = loop.iterate()
    for name, value in metrics.items():
        assert value.ndim == 0, name
        assert torch.isfinite(value), name
        assert "/" in name
    after = state(loop.learner)
    assert any(not torch.equal(before[k], after[k]) for k in before if k.startswith("policy."))


@on_every_method
def test_a_state_round_trip_goes_on_bit_for_bit(method):
    loop, copy = (loop_of(method, steps=1000, learning_rate=1e-2) for _ in range(2))
    loop.iterate()
    model, training = loop.learner.model_state(), loop.learner.training_state()
    held = [{k: v.clone() for k, v in part.items()} for part in (model, training, loop.state_dict())]
    copy.learner.load_model_state(held[0])
    copy.learner.load_training_state(held[1])
    copy.load_state_dict(held[2])
    for one in (loop, copy):
        one.env_steps = 16
        torch.manual_seed(5)
        one.iterate()
    left, right = state(loop.learner), state(copy.learner)
    assert left.keys() == right.keys()
    for name in left:
        assert torch.equal(left[name], right[name]), name


def learned(loop, rollout, seed=0):
    torch.manual_seed(seed)
    loop.learner.update(rollout)
    return loop.learner.opt["policy"].flat.detach().clone()


@pytest.mark.parametrize("method", ["grpo", "dr_grpo", "gbpo", "ppo_tokens", "bapo", "topr"])
@pytest.mark.parametrize("micro", [1, 3, 8])
def test_micro_batches_leave_the_step_as_it_is(method, micro):
    whole, parts = (loop_of(method, micro_batch_size=size, learning_rate=1e-2) for size in (None, micro))
    torch.manual_seed(0)
    rollout = whole.collect()
    torch.testing.assert_close(learned(whole, rollout), learned(parts, rollout), rtol=1e-3, atol=2e-5)


class Half(Ranks):
    """One of two processes, with what the other one said written down before."""

    size = 2

    def __init__(self, index, log, said):
        self.index, self.log, self.said = index, log, said

    def _exchange(self, x):
        self.log.append(x.detach().clone())
        at = len(self.log) - 1
        return self.said[at] if at < len(self.said) else x

    def mean_(self, x):
        return x.copy_((x + self._exchange(x)) / 2)

    def stacked(self, x):
        other = self._exchange(x)
        return torch.stack([x, other] if self.index == 0 else [other, x])

    def averaged(self, metrics):
        return metrics


def test_bounds_of_the_whole_step_take_another_ranks_longer_responses():
    class Longer(Ranks):
        """Beside a rank whose responses are two tokens longer and count nowhere."""

        size, widths = 2, set()

        def gathered(self, value):
            return [value, value + 2]

        def stacked(self, x):
            self.widths.add(x.shape[1])
            return torch.stack([x, torch.zeros_like(x)])

    alone, beside = (loop_of("bapo", learning_rate=1e-2) for _ in range(2))
    torch.manual_seed(0)
    rollout = alone.collect()
    bounds = beside.learner.score.bounds
    beside.learner.score.bounds = lambda rows, ranks, **how: bounds(rows, Longer(), **how)
    torch.testing.assert_close(learned(alone, rollout), learned(beside, rollout), rtol=1e-3, atol=2e-5)
    assert Longer.widths == {rollout.mask.shape[1] + 2}


@pytest.mark.parametrize("method", ["grpo", "reinforce_pp", "bnpo", "ppo_tokens"])
def test_two_ranks_take_the_step_that_one_takes_with_all_responses(method):
    alone = loop_of(method, learning_rate=1e-2, task=env(16))
    torch.manual_seed(0)
    rollout = alone.collect()
    first = torch.arange(16) < 8
    halves = [rollout.where(first), rollout.where(~first)]
    logs = [[], []]
    for _ in range(12):  # every round one more of what the other said is right
        flats = []
        for index in (0, 1):
            loop = loop_of(method, learning_rate=1e-2, task=env(16))
            log = []
            loop.learner.ranks = Half(index, log, logs[1 - index])
            for step in loop.learner.opt.values():
                step.ranks = loop.learner.ranks
            flats.append(learned(loop, halves[index]))
            logs[index] = log
    wanted = learned(alone, rollout)
    for flat in flats:
        torch.testing.assert_close(flat, wanted, rtol=1e-3, atol=2e-5)


def test_the_first_ratio_is_1_even_where_dropout_was_left_on():
    model = llama().train()
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.5
    metrics = loop_of("grpo", model=model, learning_rate=0.0, n_epochs=2).iterate()
    assert abs(float(metrics["ratio/max"]) - 1.0) < 1e-5
    assert abs(float(metrics["ratio/min"]) - 1.0) < 1e-5


def test_without_learning_rate_nothing_moves():
    loop = loop_of("grpo", learning_rate=0.0)
    before = loop.learner.opt["policy"].flat.detach().clone()
    loop.iterate()
    assert torch.equal(before, loop.learner.opt["policy"].flat)


def test_equal_rewards_teach_nothing():
    loop = loop_of("dr_grpo", task=env(16, rewards=lambda completions, **_: [1.0] * len(completions)))
    before = loop.learner.opt["policy"].flat.detach().clone()
    metrics = loop.iterate()
    assert float(metrics["groups/equal_share"]) == 1.0
    torch.testing.assert_close(loop.learner.opt["policy"].flat, before, rtol=0, atol=1e-12)


def test_prompts_that_teach_nothing_are_replaced_until_the_last_round():
    calls = []

    def alternating(completions, **_):
        """All right for the first half of the prompts, mixed for the others."""
        calls.append(len(completions))
        return [1.0 if i < len(completions) // 2 else float(i % 2) for i in range(len(completions))]

    loop = loop_of("dapo", task=env(16, rewards=alternating), max_rounds=3)
    rollout = loop.collect()
    assert calls == [16, 8, 4]
    assert len(rollout.reward) == 16
    assert loop.env_steps == 28
    assert rollout.group.tolist() == [i // 4 for i in range(16)]
    assert (~rollout.telling()).sum() <= 4


def test_joined_batches_keep_every_row_whatever_its_width():
    short, long = (loop_of(task=env(8, words=words, max_new_tokens=n)) for words, n in ((["ab"], 2), (["abc"], 3)))
    torch.manual_seed(0)
    a, b = short.collect(), long.collect()
    both = joined([a, b])
    assert both.prompt_ids.shape == (4, 5)
    assert both.prompt_mask.sum(1).tolist() == [4, 4, 5, 5]
    assert torch.equal(both.ids[8:], b.ids)
    assert not both.mask[:8, 2].any()
    assert both.group.tolist() == [i // 4 for i in range(16)]


def test_the_greedy_response_is_the_baseline_where_a_method_asks_for_it():
    loop = loop_of("remax", task=env(4, rewards=lambda completions, **_: [float(len(c)) for c in completions]))
    rollout = loop.collect()
    again = loop.learner.respond(rollout.prompt_ids, rollout.prompt_mask, n=1, max_new_tokens=3, greedy=True)
    texts = TOKENIZER.batch_decode(again.ids, skip_special_tokens=True)
    assert rollout.greedy_reward.tolist() == [float(len(t)) for t in texts]


def test_values_begin_at_zero_and_are_learned_without_moving_the_policy():
    loop = loop_of("ppo_tokens", learning_rate=0.0, value_learning_rate=1e-2, steps=10_000)
    head, policy = loop.learner.nets["value"], loop.learner.opt["policy"].flat.detach().clone()
    assert not head[-1].weight.any()
    first = loop.iterate()["loss/value"]
    for _ in range(30):
        last = loop.iterate()["loss/value"]
    assert float(last) < 0.5 * float(first)
    assert torch.equal(policy, loop.learner.opt["policy"].flat)


def test_a_method_with_a_critic_refuses_a_model_without_hidden_states():
    with pytest.raises(ValueError, match="algo=ppo_tokens learns values"):
        loop_of("ppo_tokens", model=Bigram())


def test_tokens_of_another_engine_are_weighed_by_how_likely_the_policy_finds_them():
    loop = loop_of("grpo", kl="none", kl_coef=0.0, generator_limit=2.0)
    rollout = loop.collect()
    old = loop.learner.score.log_probs(rollout)[0]
    told = rollout._replace(log_prob=old - torch.tensor([math.log(0.5), 0.0, math.log(8.0)]))
    rows, _ = loop.learner._prepared(told)
    wanted = torch.tensor([0.5, 1.0, 2.0]).expand_as(rows.weight).where(rows.mask, 1.0)
    torch.testing.assert_close(rows.weight, wanted, rtol=1e-4, atol=1e-4)


def test_an_engine_samples_in_place_of_the_model():
    loop = loop_of("grpo")
    loop.learner.engine = lambda **asked: torch.full((16, 3), EOS)
    rollout = loop.collect()
    assert rollout.mask.sum().item() == 16
    assert torch.isfinite(torch.stack(list(loop.learner.update(rollout).values()))).all()


def test_engines_may_say_nothing_at_all():
    loop = loop_of("grpo", learning_rate=1e-2)
    before = loop.learner.opt["policy"].flat.detach().clone()
    loop.learner.engine = lambda **asked: torch.zeros(16, 0, dtype=torch.int64)
    rollout = loop.collect()
    assert not rollout.mask.any()
    assert torch.isfinite(torch.stack(list(loop.learner.update(rollout).values()))).all()
    assert torch.equal(loop.learner.opt["policy"].flat, before)


@pytest.mark.parametrize("padding", ["$", None])
def test_padding_with_the_end_of_sequence_changes_nothing(padding):
    """Masks come from the first end of sequence, so that the token of padding, if there is one, does not matter."""
    from ctrlrl.llm.environment import TextEnv
    from ctrlrl.llm.prompts import Prompts

    flats = []
    for pad in ("_", padding):
        words = type(TOKENIZER)(tokenizer_object=TOKENIZER.backend_tokenizer, pad_token=pad, eos_token="$")
        task = env(16)
        given = {"make_model": llama, "max_new_tokens": 6, "n_envs": 16, "device": torch.device("cpu")}
        prompts = Prompts(["^ab>", "^c>"], {"answer": ["ab", "c"]}, words, pad=words.pad_token_id or EOS)
        task = TextEnv(prompts, task.rewards, words, **given)
        loop = loop_of("grpo", task=task, max_tokens=6, learning_rate=1e-2)
        torch.manual_seed(0)
        loop.iterate()
        flats.append(loop.learner.opt["policy"].flat.detach().clone())
    assert torch.equal(*flats)


def test_a_response_without_tokens_counts_for_nothing():
    loop = loop_of("grpo", learning_rate=1e-2)
    rollout = loop.collect()
    rollout = rollout._replace(mask=rollout.mask.clone())
    rollout.mask[3] = False
    noisy = rollout._replace(ids=rollout.ids.clone())
    noisy.ids[3] = 5
    other = loop_of("grpo", learning_rate=1e-2)
    torch.testing.assert_close(learned(loop, rollout), learned(other, noisy), rtol=0, atol=1e-7)


def test_success_rates_of_prompts_are_tracked():
    loop = loop_of("spo", task=env(8, rewards=lambda completions, **_: [1.0] * len(completions)))
    loop.iterate()
    tracker = loop.learner.tracker
    asked = tracker.state["seen"]
    torch.testing.assert_close(tracker.state["success"], torch.where(asked, 0.96 * 4.0 + 1.0, 4.0))
    torch.testing.assert_close(tracker.state["failure"], torch.where(asked, 0.96 * 4.0, 4.0))
    assert 1 < asked.sum() < 8


def test_a_reference_stays_what_the_model_was():
    loop = loop_of("grpo", learning_rate=1e-2, kl_coef=0.1)
    before = {k: v.clone() for k, v in loop.learner.reference.module.state_dict().items()}
    assert float(loop.iterate()["policy/kl_ref"]) == pytest.approx(0.0, abs=1e-6)
    assert float(loop.iterate()["policy/kl_ref"]) > 1e-6
    assert all(torch.equal(before[k], v) for k, v in loop.learner.reference.module.state_dict().items())


def test_the_learning_rate_falls_to_zero_along_the_run():
    learner = loop_of("ppo_tokens", lr_schedule="linear", learning_rate=1e-2).learner
    learner.set_progress(0.25)
    assert float(learner.opt["policy"].learning_rate) == pytest.approx(7.5e-3)
    assert float(learner.opt["value"].learning_rate) == pytest.approx(7.5e-2)


def test_bfloat16_products_learn_in_float32_weights():
    loop = loop_of("grpo", n_epochs=2)
    loop.learner.set_dtype("bfloat16")
    metrics = loop.iterate()
    assert torch.isfinite(torch.stack(list(metrics.values()))).all()
    assert loop.learner.opt["policy"].flat.dtype == torch.float32


def test_divergence_is_an_error_that_names_the_mend():
    loop = loop_of("grpo", learning_rate=1.0)
    with torch.no_grad():
        loop.learner.opt["policy"].flat.fill_(math.nan)
    with pytest.raises(ValueError, match=r"training diverged.*Lower algo\.learning_rate"):
        loop.iterate()


def test_a_model_without_trainable_weights_is_refused():
    model = nn.Module.requires_grad_(llama(), False)
    with pytest.raises(ValueError, match="no parameter that requires a gradient"):
        loop_of("grpo", model=model)
