import torch

from ctrlrl.functional.tracker import prompt_weight, tracker_start, tracker_step, tracker_value

F64 = torch.float64


def tensor(*values):
    return torch.tensor(values, dtype=F64)


def close(actual, wanted, atol=5e-7):
    torch.testing.assert_close(actual, torch.as_tensor(wanted, dtype=F64), rtol=0, atol=atol)


def test_the_start_weighs_the_samples_as_eight():
    success, failure = tracker_start(tensor(3.0), 8)
    close(torch.cat([success, failure]), [28 / 9, 44 / 9], atol=1e-12)
    close(tracker_value(success, failure), [0.3888889])


def test_a_policy_that_moved_forgets():
    success, failure = tracker_step(tensor(28 / 9), tensor(44 / 9), tensor(1.0), tensor(0.01))
    close(success, [28 / 9 * 2 ** (-1 / 6) + 1], atol=1e-12)
    close(torch.cat([success, failure]), [3.771685, 4.355505])


def test_forgetting_stays_between_its_bounds():
    zero = tensor(0.0, 0.0)
    success, _ = tracker_step(tensor(1.0, 1.0), zero, zero, tensor(0.0, 9.0))
    close(success, [0.96, 0.875])


def test_prompts_that_are_neither_solved_nor_hopeless_are_worth_most():
    weight = prompt_weight(tensor(0.0, 1.0, 2.0), tensor(2.0, 1.0, 0.0))
    close(weight, [0.05, 0.55, 0.05])
