"""Stochastic discrete lot sizing: machines that choose what to produce before the demand is known. arXiv:2504.05150.

A step has two halves: machines set up and produce, which is known once the action is chosen, then demand takes away.
`post_obs` is the observation between them, `reward_split` the rewards of both halves.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ctrlrl.envs.lane_random import stream
from ctrlrl.envs.sim import Sim
from ctrlrl.types import Extras

SIZES = ("15x5", "20x10", "25x10", "25x15", "30x10", "30x15")  # items x machines
HORIZON = 100  # steps
MAX_INVENTORY = 100  # of every item
HOLDING_COST = 0.01  # of one unit of any item for one step
DEMAND_TRIALS, DEMAND_RATE = 20, 0.4  # binomial, independent by item and step


class Instance(NamedTuple):
    """The numbers of one plant; machines M, items N."""

    production: Any  # [M, N] units a step; 0 = the machine cannot make the item
    setup_cost: Any  # [M, N] of changing to the item
    setup_loss: Any  # [M, N] units lost in the step of the change
    lost_sales_cost: Any  # [N] of a unit of demand that is not met


PRINTED_15X5 = Instance(
    production=[
        [12, 11, 0, 0, 11, 17, 22, 15, 8, 38, 0, 0, 36, 4, 10],
        [20, 32, 0, 0, 23, 37, 27, 0, 25, 25, 34, 21, 28, 3, 0],
        [10, 27, 0, 0, 5, 40, 0, 0, 0, 32, 0, 0, 9, 4, 0],
        [15, 0, 40, 29, 25, 9, 0, 0, 0, 0, 0, 22, 5, 20, 0],
        [12, 0, 0, 0, 29, 0, 0, 0, 0, 0, 0, 22, 12, 30, 0],
    ],
    setup_cost=[
        [15, 25, 19, 15, 21, 15, 30, 23, 15, 15, 27, 17, 30, 20, 28],
        [21, 28, 15, 22, 27, 20, 30, 24, 15, 28, 23, 15, 28, 22, 19],
        [15, 27, 27, 30, 19, 22, 17, 19, 26, 29, 15, 29, 30, 19, 16],
        [28, 30, 21, 17, 15, 26, 15, 29, 27, 18, 18, 22, 17, 28, 15],
        [21, 21, 16, 30, 16, 21, 15, 15, 17, 29, 29, 17, 24, 22, 19],
    ],
    setup_loss=[
        [1, 1, 3, 3, 1, 3, 3, 2, 1, 3, 1, 2, 2, 1, 3],
        [1, 1, 1, 1, 2, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3],
        [1, 1, 2, 3, 1, 2, 2, 1, 1, 1, 1, 1, 1, 1, 3],
        [1, 3, 1, 1, 1, 1, 1, 1, 1, 1, 1, 3, 1, 1, 1],
        [1, 2, 3, 1, 1, 1, 1, 1, 1, 3, 3, 1, 1, 2, 1],
    ],
    lost_sales_cost=[0.1, 0.1, 0.1, 0.1, 1.1, 0.1, 1.1, 0.1, 0.1, 1.1, 1.1, 1.1, 0.1, 1.1, 0.1],
)


def generated(n_items: int, n_machines: int) -> Instance:
    """An instance by the rules of the authors' generator, drawn by NumPy's MT19937 seeded with (n_items, n_machines).

    Theirs are not seeded, so that this is another plant than theirs of the same size.
    """
    rng = np.random.RandomState([n_items, n_machines])

    def biased(least: int, most: int, p_least: float, *shape: int) -> Any:
        """`least` with probability p_least, else uniform above it."""
        return np.where(rng.random_sample(shape) < p_least, least, rng.randint(least + 1, most + 1, shape))

    table = (n_machines, n_items)
    production, setup_cost = biased(0, 40, 0.4, *table), biased(15, 30, 0.2, *table)
    return Instance(production, setup_cost, biased(1, 3, 0.7, *table), 0.1 + biased(0, 1, 0.5, n_items))


@dataclass
class LotSizingSettings:
    size: str = "15x5"  # items x machines; 15x5 is the authors' instance
    observe_setups: bool = False  # also what each machine is set up for, as the authors' older code did

    def __post_init__(self) -> None:
        if self.size not in SIZES:
            raise ValueError(f"env.size must be one of {', '.join(SIZES)} (items x machines), got {self.size!r}")


class LotSizingState(NamedTuple):
    inventory: Tensor  # [N, B] units
    setup: Tensor  # [M, B] item that a machine is set up for, from 1; 0 = idle
    key: Tensor  # [B] int64, of the episode's demand
    t: Tensor  # [B] int64, steps taken


class LotSizing(Sim):
    """Each machine makes one item (from 1) or idles (0); the reward is minus setup, lost-sales and holding costs.

    The horizon ends the task: after 100 steps an episode is terminated, so no value is bootstrapped there. A machine
    told to make what it cannot loses the setup units from the stock, below 0 if need be. Demand is a hash of the
    episode's key, step and item: what the authors draw in advance, without keeping it.
    """

    Settings = LotSizingSettings
    extras = ("post_obs", "reward_split")
    episode_length = 0

    def __init__(self, settings: LotSizingSettings | None = None, instance: Instance | None = None) -> None:
        """instance: a plant of one's own in place of that of settings.size."""
        chosen = settings or LotSizingSettings()
        n_items, n_machines = (int(x) for x in chosen.size.split("x"))
        if instance is None:
            instance = PRINTED_15X5 if chosen.size == "15x5" else generated(n_items, n_machines)
        self.instance, self.observe_setups = instance, chosen.observe_setups
        production, cost, loss = (
            torch.nn.functional.pad(torch.as_tensor(np.array(x), dtype=torch.float64), (1, 0)) for x in instance[:3]
        )
        self.n_machines, options = production.shape  # options: idle and N items
        self.n_items, self.nvec = options - 1, (options,) * self.n_machines
        self.obs_dim = self.n_items + self.n_machines * self.observe_setups
        self.n_random = self.n_items + self.n_machines + 1
        self.production, self.setup_cost, self.setup_loss = production, cost, loss  # [M, 1 + N]
        self.lost_sales_cost = torch.as_tensor(np.array(instance.lost_sales_cost), dtype=torch.float64).unsqueeze(1)
        # the items that a machine can make stand first in its row
        self.makes = (production > 0).int().argsort(dim=1, descending=True, stable=True).double()
        self.n_makes = (production > 0).sum(1).double()
        self.demand_cdf = _binomial_cdf(DEMAND_TRIALS, DEMAND_RATE)
        self.machine = torch.arange(self.n_machines).unsqueeze(1)

    def to(self, device: torch.device, dtype: torch.dtype) -> LotSizing:
        moved = copy.copy(self)
        for name in ("production", "setup_cost", "setup_loss", "lost_sales_cost"):
            setattr(moved, name, getattr(self, name).to(device, dtype))
        for name in ("makes", "n_makes", "demand_cdf", "machine"):  # beside float64 noise
            setattr(moved, name, getattr(self, name).to(device))
        return moved

    def init(self, noise: Tensor) -> LotSizingState:
        """Inventories uniform in 0 ... 99, machines set up for an item that they can make, as the authors' reset."""
        items, machines, key = noise.T.split((self.n_items, self.n_machines, 1))
        pick = (machines * self.n_makes.unsqueeze(1)).long().clamp(max=self.n_items)
        setup = self.makes.gather(1, pick)
        return LotSizingState(
            torch.floor(items * MAX_INVENTORY), setup, (key[0] * 2.0**53).long(), torch.zeros_like(key[0]).long()
        )

    def produce(self, state: LotSizingState, action: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Inventory [N, B] and setup [M, B] after the decision, and its setup cost [B]; action [B, M] int64."""
        choice = action.T.clamp(0, self.n_items)
        production, cost, loss = (
            table[self.machine, choice] for table in (self.production, self.setup_cost, self.setup_loss)
        )
        setup = choice.to(state.setup.dtype)
        changed = (setup != state.setup).to(state.setup.dtype)  # to idle is free: its column is 0
        made = torch.zeros_like(state.inventory[:1]).expand(self.n_items + 1, -1)
        made = made.scatter_add(0, choice, production - changed * loss)[1:]
        return state.inventory + made, setup, (changed * cost).sum(0)

    def sell(self, inventory: Tensor, demand: Tensor) -> tuple[Tensor, Tensor]:
        """Inventory [N, B] after demand [N, B], and the costs of lost sales and of holding the rest [B]."""
        left = inventory - demand
        lost = (-left).clamp(min=0.0) * self.lost_sales_cost
        kept = left.clamp(0.0, MAX_INVENTORY)
        return kept, lost.sum(0) + HOLDING_COST * kept.sum(0)

    def demand(self, state: LotSizingState) -> Tensor:
        """[N, B] units of this step."""
        drawn = torch.bucketize(stream(state.key, state.t, self.n_items), self.demand_cdf, right=True)
        return drawn.to(state.inventory.dtype)

    def step(self, state: LotSizingState, action: Tensor) -> tuple[LotSizingState, Tensor, Tensor, Extras]:
        inventory, setup, setup_cost = self.produce(state, action)
        post_obs = self._show(inventory, setup)
        kept, cost = self.sell(inventory, self.demand(state))
        t = state.t + 1
        split = torch.stack((-setup_cost, -cost))
        extras = {"post_obs": post_obs, "reward_split": split.T}
        return LotSizingState(kept, setup, state.key, t), split.sum(0), t >= HORIZON, extras

    def observe(self, state: LotSizingState) -> Tensor:
        return self._show(state.inventory, state.setup)

    def _show(self, inventory: Tensor, setup: Tensor) -> Tensor:
        return (torch.cat((inventory, setup)) if self.observe_setups else inventory).T


def _binomial_cdf(n: int, p: float) -> Tensor:
    """[n] float64: P(X <= k) for k = 0 ... n - 1."""
    k = torch.arange(n + 1, dtype=torch.float64)
    log_choose = torch.lgamma(torch.tensor(n + 1.0, dtype=k.dtype)) - torch.lgamma(k + 1) - torch.lgamma(n - k + 1)
    return (log_choose + k * np.log(p) + (n - k) * np.log1p(-p)).exp().cumsum(0)[:-1]
