"""Batches of recorded responses: whole prompts, advantages of the whole recording, pairs where a loss compares two."""

import pytest
import torch

from ctrlrl.functional.group import group_center
from ctrlrl.llm.methods import LEARNERS
from ctrlrl.llm.presets import preset
from ctrlrl.llm.recorded import Recorded, labelled
from ctrlrl.llm.recorded_loop import RecordedLoop, told_apart
from ctrlrl.llm.recorded_task import apart, tokens_of
from ctrlrl.llm.recording import Batches, Recording, members
from ctrlrl.llm.text_files import load_labelled
from ctrlrl.types import EnvSpec
from tests.llm.recorded_texts import sums
from tests.llm.small_models import EOS, PAD, TOKENIZER, llama, state

CPU = torch.device("cpu")
ANSWERS = {"a": [("bc", 1.0), ("cb", 0.0), ("bbb", 0.0)], "d": [("ef", 1.0), ("fe", 0.5)], "f": [("a", 1.0)]}
ROWS = [{"prompt": q, "response": r, "reward": w} for q, found in ANSWERS.items() for r, w in found]


def data() -> Recorded:
    return tokens_of(labelled(ROWS), TOKENIZER, 32)[0]


def batches(method, n=6, **changes):
    return Batches(preset(method, **changes), data(), n, CPU)


def texts(batch):
    rows = zip(batch.ids, batch.mask, strict=True)
    return ["".join(TOKENIZER.convert_ids_to_tokens(ids[mask])) for ids, mask in rows]


def test_members_are_the_places_of_each_number():
    assert members(torch.tensor([1, 0, 1, 1])).tolist() == [[1, -1, -1], [0, 2, 3]]


def test_advantages_compare_all_that_was_recorded_of_a_prompt():
    """Also in a batch that holds two of three responses; a prompt with one response is left out."""
    made = batches("topr", n=4, group_size=2)
    wanted = {"bc$": 2 / 3, "cb$": -1 / 3, "bbb$": -1 / 3, "ef$": 0.25, "fe$": -0.25}
    seen = set()
    for _ in range(20):
        batch = made.sample()
        assert batch.ids.shape[0] == 4
        for text, advantage in zip(texts(batch), batch.advantage.tolist(), strict=True):
            assert advantage == pytest.approx(wanted[text])
            seen.add(text)
    assert seen == set(wanted)


def test_a_prompt_with_fewer_responses_is_filled_with_rows_that_do_not_count():
    batch = batches("topr", n=6).sample()
    counts = batch.mask.any(1).unflatten(0, (2, 3)).sum(1)
    assert sorted(counts.tolist()) == [2, 3]
    assert sorted(text for text in texts(batch) if text) == ["bbb$", "bc$", "cb$", "ef$", "fe$"]


def test_imitation_takes_every_prompt_and_one_response_of_it():
    made = batches("sft", n=3)
    seen = {text for _ in range(30) for text in texts(made.sample())}
    assert seen == {f"{r}$" for found in ANSWERS.values() for r, _ in found}
    batch = made.sample()
    assert batch.advantage.tolist() == [1.0] * 3
    assert len(set(batch.prompt.tolist())) == 3


def test_pairs_are_neighbours_of_one_prompt_the_better_one_first():
    made = batches("dpo", n=4)
    seen = set()
    for _ in range(30):
        batch = made.sample()
        assert (batch.reward[::2] > batch.reward[1::2]).all()
        told = texts(batch)
        seen |= set(zip(told[::2], told[1::2], strict=True))
    assert seen == {("bc$", "cb$"), ("bc$", "bbb$"), ("ef$", "fe$")}


def test_prompts_are_all_asked_before_one_is_asked_again_and_the_order_is_restored():
    one, other = batches("sft", n=2), batches("sft", n=2)
    assert len(torch.cat([one.sample().prompt for _ in range(3)]).unique()) == 3
    other.load_state_dict({k: v.clone() for k, v in one.state_dict().items()})
    torch.manual_seed(0)
    wanted = one.sample()
    torch.manual_seed(0)
    assert torch.equal(wanted.ids, other.sample().ids)


def test_without_anything_to_compare_it_is_refused():
    single = tokens_of(labelled([ROWS[0], ROWS[-1]]), TOKENIZER, 32)[0]
    with pytest.raises(ValueError, match="no prompt has two recorded responses to compare"):
        Batches(preset("topr"), single, 4, CPU)
    equal = tokens_of(labelled([ROWS[1], ROWS[2]]), TOKENIZER, 32)[0]
    with pytest.raises(ValueError, match="two recorded responses of different reward"):
        Batches(preset("dpo"), equal, 4, CPU)


def test_the_last_prompts_are_kept_apart():
    train, test = apart(data(), 0.3)
    assert test is not None
    assert (len(train.reward), len(test.reward)) == (5, 1)
    assert apart(data(), 0.0)[1] is None
    with pytest.raises(ValueError, match=r"data\.holdout=0\.9 leaves none of the 3 prompts"):
        apart(data(), 0.9)


def loop(method, *, steps=10, n=6, **changes):
    cfg = preset(method, **{"learning_rate": 1e-2, "max_tokens": 4, **changes})
    found = Recording(data(), TOKENIZER, eos=EOS, pad=PAD, make_model=llama, n_envs=n, device=CPU)
    spec = EnvSpec(4, 0, 22, 1, n_envs=n, episode_length=4, device=CPU)
    learner = LEARNERS[method](cfg, spec, model=llama(), eos=EOS, pad=PAD, recorded=True)
    return RecordedLoop(learner, found, gradient_steps=steps)


@pytest.mark.parametrize("method", ["topr", "dpo", "direct_advantage", "sft", "grpo", "gbpo", "rloo"])
def test_right_responses_gain_on_wrong_ones(method):
    """rloo's preset has its KL in the reward, which only own responses have."""
    changes = {"rloo": {"kl": "none", "kl_coef": 0.0}}.get(method, {})
    made = loop(method, steps=30, **changes)
    assert told_apart(made.learner, data(), most=100, seed=0).right.tolist() == [False] * 3  # of three pairs
    while not made.done:
        metrics = made.iterate()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert made.gradient_steps == 30
    if method != "sft":
        assert told_apart(made.learner, data(), most=100, seed=0).right.all()


def test_the_ratio_is_to_the_reference_also_in_later_steps():
    made = loop("topr", learning_rate=0.05)
    batch = made.batches.sample()
    for _ in range(2):
        rows, _ = made.learner._prepared(batch)
        torch.testing.assert_close(rows.log_prob_old, made.learner.score.reference_log_probs(batch))
        told = made.learner.update(batch)
    assert float(told["ratio/max"]) > 1.001


def test_micro_batches_leave_the_steps_as_they_are():
    for method, size in (("topr", 2), ("dpo", 2), ("direct_advantage", 1)):
        whole, parts = (loop(method, micro_batch_size=micro, steps=2) for micro in (None, size))
        for one in (whole, parts):
            torch.manual_seed(0)
            one.iterate()
        left, right = state(whole.learner), state(parts.learner)
        for name in (k for k in left if k.startswith("policy.")):
            torch.testing.assert_close(left[name], right[name], rtol=1e-3, atol=2e-5)


@pytest.mark.parametrize(
    ("method", "setting"),
    [("ppo_tokens", "advantage=gae"), ("spo", "advantage=tracker"), ("remax", "advantage=remax"), ("aepo", "positive")],
)
def test_what_needs_responses_of_its_own_is_refused(method, setting):
    with pytest.raises(ValueError, match=f"algo={method}: {setting}.* needs responses of its own"):
        loop(method)


def test_the_file_of_the_tests_is_read(tmp_path):
    found, left = tokens_of(load_labelled(sums(tmp_path)), TOKENIZER, 10**6)
    assert (len(found.reward), left) == (40, 0)
    assert group_center(found.reward, found.group).abs().eq(0.5).all()
