"""Language models in Python: what users hand over, and how long learning lasts."""

import json

import pytest
import torch

from ctrlrl import DAPO, DPO, GRPO, SFT, TPPO, ReinforcePPBaseline
from ctrlrl.functional.selection import soft_overlong
from ctrlrl.llm.recorded import columns_of, labelled
from ctrlrl.llm.text_files import load_labelled
from ctrlrl.settings import train_config, typed
from ctrlrl.texts import text_env, token_learner
from tests.llm.small_models import TOKENIZER, WORDS, gpt2, letters, llama

PROMPTS = [{"prompt": f"^{word}>", "answer": word} for word in WORDS]
RECORDED = [
    {"prompt": f"^{word}>", "response": word[:n], "reward": float(n == 2)} for word in WORDS for n in (1, 2)
] + [{"prompt": "^ab>", "response": "abcdef", "reward": 0.0}]


def test_weights_in_which_small_steps_round_away_are_refused():
    with pytest.raises(ValueError, match=r"its weights are bfloat16.*load it with dtype=torch\.float32"):
        GRPO(llama().to(torch.bfloat16), TOKENIZER, reward_fns=letters, dataset=PROMPTS)


@pytest.mark.filterwarnings("ignore:algo=tppo is experimental")
@pytest.mark.parametrize(
    ("kind", "more"), [(DAPO, {"group_size": 4}), (TPPO, {"window": 2, "n_envs": 8}), (GRPO, {"group_size": 4})]
)
def test_iterations_are_updates_however_many_responses_one_takes(kind, more):
    def rarely(completions, **_):
        return [float(len(text) == 2) for text in completions]

    torch.manual_seed(0)
    agent = kind(llama(), TOKENIZER, reward_fns=rarely, dataset=PROMPTS, max_tokens=5, **{"n_envs": 16, **more})
    assert len(agent.learn(iterations=3).log_history) == 3
    assert len(agent.learn(iterations=2).log_history) == 5


@pytest.mark.parametrize("kind", [ReinforcePPBaseline, SFT, DPO])
def test_recorded_responses_of_any_length_are_learned_from_a_few_at_a_time(kind):
    groups = {"group_size": 2} if kind is ReinforcePPBaseline else {}
    agent = kind(llama(), TOKENIZER, dataset=RECORDED, n_envs=1 if kind is SFT else 2, **groups)
    agent.learn(12)
    assert agent.num_timesteps == 12


def test_pairs_stay_together_in_small_minibatches():
    agent = DPO(llama(), TOKENIZER, dataset=RECORDED[:4], n_envs=8, n_minibatches=4)
    assert agent.learn(2).num_timesteps >= 2


@pytest.mark.filterwarnings("ignore:algo=tppo is experimental")
def test_windows_do_not_run_past_the_models_positions():
    agent = TPPO(
        gpt2(), TOKENIZER, reward_fns=letters, dataset=PROMPTS, window=8, max_tokens=27, n_envs=4, temperature=0.05
    )
    agent.learn(iterations=5)


def test_prompts_may_come_from_a_generator():
    agent = GRPO(llama(), TOKENIZER, reward_fns=letters, dataset=iter(PROMPTS), group_size=4, n_envs=8, max_tokens=3)
    assert len(agent.env.prompts) == len(PROMPTS)


def test_lines_end_where_json_lines_do(tmp_path):
    rows = [{"prompt": "a", "response": "x\u2028y\u0085z", "reward": 1.0}]
    (tmp_path / "x.jsonl").write_text(json.dumps(rows[0], ensure_ascii=False) + "\n\n", encoding="utf-8")
    assert load_labelled(tmp_path / "x.jsonl").responses == [rows[0]["response"]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"reward": None}, "the reward of row 1 is None, wanted a number"),
        ({"reward": "good"}, "the reward of row 1 is 'good', wanted a number"),
        ({"response": None}, "the response of row 1 is None, wanted a text or a chat"),
        ({"prompt": 3}, "the prompt of row 1 is 3, wanted a text or a chat"),
    ],
)
def test_a_bad_row_is_named_with_its_column(change, message):
    with pytest.raises(ValueError, match=f"dataset: {message}"):
        labelled([RECORDED[0], RECORDED[1] | change])


def test_rows_with_other_columns_are_named():
    with pytest.raises(ValueError, match="dataset: row 1 lacks answer, which the first row has"):
        columns_of([{"prompt": "a", "answer": "b"}, {"prompt": "a"}])
    with pytest.raises(ValueError, match="dataset: every prompt is empty"):
        SFT(llama(), TOKENIZER, dataset=[{"prompt": "", "response": "a", "reward": 1.0}])


@pytest.mark.parametrize("more", [[], ["algo.overlong_buffer=2"], ["algo.overlong=mask"]])
def test_a_whole_answer_and_its_end_come_before_the_penalty_of_long_ones(more):
    cfg = typed(train_config(["algo=dapo", "env=tokens/copy", *more]))
    env = text_env(cfg, torch.device("cpu"))
    longest, buffer = env.max_new_tokens, cfg.algo.overlong_buffer or max(1, env.max_new_tokens // 5)
    answer = len(env.prompts.columns["answer"][0]) + 1  # with its end of sequence
    assert answer <= longest - buffer
    assert soft_overlong(torch.tensor([answer]), max_length=longest, buffer=buffer).item() == 0.0
    assert token_learner(cfg, env).cfg.max_tokens == longest
