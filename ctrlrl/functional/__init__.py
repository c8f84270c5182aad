"""Public, pure functions of tensors: every formula of the library, once. Files inside ctrlrl import the modules."""

from ctrlrl.functional.conservative import calibrated, conservative_gap
from ctrlrl.functional.coverage import goal_reached, goal_shares, share_entropy
from ctrlrl.functional.distributions import (
    adapt_learning_rate,
    approx_kl,
    categorical_entropy,
    categorical_kl,
    categorical_log_prob,
    categorical_sample,
    gaussian_entropy,
    gaussian_kl,
    gaussian_log_prob,
    gaussian_sample,
    smoothed_action,
    tanh_gaussian_log_prob,
    tanh_gaussian_sample,
)
from ctrlrl.functional.entropy import entropy_policy_loss, temperature_loss
from ctrlrl.functional.gap import (
    classification_loss,
    dynamics_gap,
    dynamics_weight,
    gap_penalty,
    log_dynamics_ratio,
    log_share,
)
from ctrlrl.functional.gates import advantage_gate, better_action
from ctrlrl.functional.masked import batch_mean, masked_mean, masked_std, standardize
from ctrlrl.functional.paths import brownian_residual, path_point, predicted_noise, sample_path, velocity_log_ratio
from ctrlrl.functional.post_decision import post_decision_advantage
from ctrlrl.functional.regression import (
    clipped_value,
    expectile,
    huber,
    quantile_huber,
    soft_median_loss,
    soft_quantile_loss,
    squared_distance,
    td_target,
)
from ctrlrl.functional.returns import (
    discounted_returns,
    discounted_sums,
    egae,
    gae,
    lambda_returns,
    n_step,
    n_step_sums,
    next_valid,
)
from ctrlrl.functional.routing import error_weights, follows_largest, heads_loss, routed_advantage, weight_entropy
from ctrlrl.functional.samplers import euler, midpoint
from ctrlrl.functional.scan import linear_recurrence
from ctrlrl.functional.surrogate import bpo, bpo_target, ppo_clip
from ctrlrl.functional.weights import awr_weight, q_scale

__all__ = [
    "adapt_learning_rate",
    "advantage_gate",
    "approx_kl",
    "awr_weight",
    "batch_mean",
    "better_action",
    "bpo",
    "bpo_target",
    "brownian_residual",
    "calibrated",
    "categorical_entropy",
    "categorical_kl",
    "categorical_log_prob",
    "categorical_sample",
    "classification_loss",
    "clipped_value",
    "conservative_gap",
    "discounted_returns",
    "discounted_sums",
    "dynamics_gap",
    "dynamics_weight",
    "egae",
    "entropy_policy_loss",
    "error_weights",
    "euler",
    "expectile",
    "follows_largest",
    "gae",
    "gap_penalty",
    "gaussian_entropy",
    "gaussian_kl",
    "gaussian_log_prob",
    "gaussian_sample",
    "goal_reached",
    "goal_shares",
    "heads_loss",
    "huber",
    "lambda_returns",
    "linear_recurrence",
    "log_dynamics_ratio",
    "log_share",
    "masked_mean",
    "masked_std",
    "midpoint",
    "n_step",
    "n_step_sums",
    "next_valid",
    "path_point",
    "post_decision_advantage",
    "ppo_clip",
    "predicted_noise",
    "q_scale",
    "quantile_huber",
    "routed_advantage",
    "sample_path",
    "share_entropy",
    "smoothed_action",
    "soft_median_loss",
    "soft_quantile_loss",
    "squared_distance",
    "standardize",
    "tanh_gaussian_log_prob",
    "tanh_gaussian_sample",
    "td_target",
    "temperature_loss",
    "velocity_log_ratio",
    "weight_entropy",
]
