"""AEPO in the loop: some prompts are asked again at another temperature, and good answers take the place of rows."""

import pytest
import torch

from ctrlrl.llm.presets import preset
from tests.llm.small_models import env, llama, loop_of


def loop(*, scale=8.0, target=0.5, rewards=None, **changes):
    given = {} if rewards is None else {"rewards": rewards}
    return loop_of("aepo", model=llama(scale=scale), task=env(16, **given), ent_target=target, **changes)


def asked(made):
    """(temperature, number of prompts) of every call of the model."""
    calls, respond = [], made.learner.respond

    def noted(ids, mask, **options):
        calls.append((options.get("temperature"), len(ids)))
        return respond(ids, mask, **options)

    made.learner.respond = noted
    return calls


@pytest.mark.parametrize(("target", "temperature"), [(100.0, 1.2), (1e-6, 0.8)])
def test_a_quarter_of_the_prompts_is_asked_again_hotter_below_the_target_and_colder_above(target, temperature):
    made = loop(target=target)
    calls = asked(made)
    batch = made.collect()
    assert calls == [(None, 4), (pytest.approx(temperature), 1)]
    assert made.env_steps == 16 + 4
    assert set(batch.prompt_ids.shape[:1]) == {16}  # every response with its own prompt


def test_good_answers_have_advantage_one_and_their_own_prompts():
    answers = iter([[0.0] * 16, [1.0, 0.0, 0.0, 0.0]])
    made = loop(target=100.0, rewards=lambda completions, **_: next(answers))
    batch = made.collect()
    assert batch.reward.tolist() == [1.0] + [0.0] * 15
    assert batch.advantage.tolist() == [1.0] + [0.0] * 15
    wanted = made.env.prompts.ids[batch.prompt]
    assert torch.equal(batch.prompt_ids, wanted[:, -batch.prompt_ids.shape[1] :])


def test_the_gradient_is_that_of_the_good_answer_alone_where_nothing_else_teaches():
    """The replaced row goes through the ordinary ratio: the step raises its log-probability."""
    answers = iter([[0.0] * 16, [1.0, 0.0, 0.0, 0.0]])
    made = loop(target=100.0, rewards=lambda completions, **_: next(answers), learning_rate=1e-3)
    batch = made.collect()

    def log_prob():
        return torch.where(batch.mask, made.learner.score.log_probs(batch)[0], 0.0).sum(1)[0]

    before = log_prob()
    made.learner.update(batch)
    assert log_prob() > before


def test_a_good_answer_that_a_rule_leaves_out_takes_no_place():
    answers = iter([[0.0] * 16, [1.0, 0.0, 0.0, 0.0]])
    made = loop(target=100.0, rewards=lambda completions, **_: next(answers), overlong="mask")
    respond = made.learner.respond

    def cut(ids, mask, **options):
        found = respond(ids, mask, **options)
        return found._replace(ended=torch.zeros_like(found.ended)) if options.get("temperature") else found

    made.learner.respond = cut
    assert made.collect().advantage.tolist() == [0.0] * 16


def test_without_good_answers_the_batch_is_grpos():
    rewards = [0.0, 1.0] * 8
    answers = iter([rewards, [0.0] * 4])
    made = loop(target=100.0, rewards=lambda completions, **_: next(answers))
    batch = made.collect()
    plain = loop_of("grpo").learner._advantages(batch._replace(advantage=None)).advantage
    torch.testing.assert_close(batch.advantage, plain)
    assert batch.reward.tolist() == rewards


@pytest.mark.parametrize("changes", [{"kl": "reward", "kl_kind": "k1"}, {"whiten": "tokens"}, {"advantage": "gae"}])
def test_what_does_not_fit_is_refused(changes):
    with pytest.raises(ValueError, match=r"positive_share=0\.25 takes one advantage a response and no kl=reward"):
        preset("aepo", **changes)
    with pytest.raises(ValueError, match="give ent_target"):
        preset("aepo", ent_target=None)
