"""One prompt, four responses of 3, 2, 4 and 1 tokens: the numbers of the specification's fixture."""

import torch

F64 = torch.float64
OLD = torch.tensor(
    [[-1.0, -0.5, -2.0, 0.0], [-0.7, -1.5, 0.0, 0.0], [-0.3, -1.2, -0.9, -2.2], [-1.6, 0.0, 0.0, 0.0]], dtype=F64
)
CHANGE = torch.tensor(
    [[0.10, -0.05, 0.40, 0.0], [-0.30, 0.25, 0.0, 0.0], [0.02, -0.10, 0.30, -0.60], [0.50, 0.0, 0.0, 0.0]], dtype=F64
)
REF_CHANGE = torch.tensor(
    [[0.05, 0.0, -0.1, 0.0], [0.1, -0.2, 0.0, 0.0], [0.0, 0.1, 0.0, 0.2], [-0.3, 0.0, 0.0, 0.0]], dtype=F64
)
MASK = torch.arange(4) < torch.tensor([[3], [2], [4], [1]])
REWARD = torch.tensor([1.0, 0.0, 0.25, 0.0], dtype=F64)
GROUP = torch.zeros(4, dtype=torch.int64)


def current():
    """Log-probs under the current policy, with NaN in the padding, and a leaf for their gradient."""
    return torch.where(MASK, OLD + CHANGE, torch.nan).requires_grad_()


def plain(name, **changes):
    """A preset without what the fixture leaves out."""
    from ctrlrl.llm.presets import preset

    off = {"kl": "none", "kl_coef": 0.0, "overlong": "none", "dynamic_sampling": False}
    return preset(name, **{**off, "max_tokens": 4, "advantage_eps": 1e-4, **changes})


def close(actual, expected, atol=5.1e-7):
    """To the digits printed in the specification."""
    torch.testing.assert_close(actual, torch.as_tensor(expected, dtype=actual.dtype), rtol=0, atol=atol)
