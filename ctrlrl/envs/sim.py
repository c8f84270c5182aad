"""Simulators as pure functions (`Sim`) and the vectorised environment made of one (`BatchedSim`).

Inside a simulator the lanes are the LAST axis: a state is a NamedTuple of [B] (or [K, B]) tensors, one per physical
quantity, so every operation runs over contiguous memory and a [B] mask broadcasts against any field. Observations are
[B, O] as everywhere, but stored column by column: call .contiguous() where rows must be adjacent.
"""

from __future__ import annotations

from types import FunctionType
from typing import Any, ClassVar

import torch
from torch import Tensor

from ctrlrl.envs.action_form import check_action
from ctrlrl.envs.lane_random import uniform
from ctrlrl.envs.sim_form import cast, check_form, check_sizes
from ctrlrl.types import EnvSpec, Extras, ObsPart, Scene, TimeStep, tree_map

State = Any  # a NamedTuple of [B] or [K, B] tensors, of the simulator's dtype or int64; every simulator has its own

# Reset noise is drawn ahead, so many steps at once that a draw has about this many rows: a smaller one costs the
# dispatch of its 60 operations (100 us), whatever its size. For few lanes that would be a long first step (0.2 s for
# one lane) that a short run never earns back: no more than these steps ahead.
_DRAW_SIZE = 16_384
_DRAW_STEPS = 256
# Above this many lanes a CPU draws noise for the lanes that ended only: few did, and a host may look which.
_SPARSE_LANES = 2048


class Sim:
    """A task as pure, batched, compilable functions; subclasses state its sizes and physics.

    Actions reaching `step` lie in [-1, 1] ([B, A], the simulator scales them) or are int64 [B] or [B, D]: `BatchedSim`
    clamps the former.
    """

    Settings: ClassVar[type | None] = None  # a dataclass that the constructor takes: env.<field> on the command line
    extras: ClassVar[tuple[str, ...]] = ()  # names of what `step` returns besides

    obs_dim: int
    action_dim: int = 0  # size of a continuous action; 0 for discrete actions
    n_actions: int = 0  # number of discrete actions; 0 for continuous actions
    nvec: tuple[int, ...] = ()  # of several discrete actions taken together
    objectives: tuple[str, ...] = ()  # names of the M entries of a vector reward; () = the reward is one number
    episode_length: int  # time limit in steps; 0 = none
    n_random: int  # uniform draws that one reset needs
    obs_parts: tuple[ObsPart, ...] = ()  # what an observation consists of; () = one vector
    scene: Scene | None = None  # of a task that is also judged by the goals its roll-outs end at

    def to(self, device: torch.device, dtype: torch.dtype) -> Sim:
        """The same simulator with its parameter tensors, if any, on `device`; must not change `self`."""
        return self

    def init(self, noise: Tensor) -> State:
        """First states of B episodes from noise [B, n_random], uniform in [0, 1); the state has the noise's dtype."""
        raise NotImplementedError

    def step(self, state: State, action: Tensor) -> tuple[State, Tensor, Tensor] | tuple[State, Tensor, Tensor, Extras]:
        """One control step: the next state, reward [B] or [B, M], terminated [B] bool, extras [B, ...] if any."""
        raise NotImplementedError

    def observe(self, state: State) -> Tensor:
        """[B, O]."""
        raise NotImplementedError

    def trial(self) -> Sim:
        """The task from the starts that it is judged from; by default its own."""
        return self


def columns(*values: Tensor) -> Tensor:
    """[B] tensors to one [B, O] observation, stored column by column: the writes stay contiguous and vectorised."""
    return torch.stack(values).T


def advance(
    sim: Sim, limit: int, state: State, clock: Tensor, action: Tensor, fresh: State | None, fresh_obs: Tensor | None
) -> tuple[State, Tensor, TimeStep]:
    """One step of B lanes with reset, as a pure function without host reads: the compile and graph unit.

    clock: [B] int32, steps taken in the episode. fresh, fresh_obs: the state and observation [B, O] from which a lane
    restarts if its episode ends in this step. Without them the ended lanes keep their last state and observation, for a
    caller that overwrites them, and only their clocks restart.
    """
    if sim.action_dim:
        action = action.clamp(-1.0, 1.0)
    state, reward, terminated, *rest = sim.step(state, action)
    final_obs = sim.observe(state)
    clock = clock + 1
    if limit:
        ended = clock >= limit
        truncated = ended > terminated  # ended and not terminated, in one operation
        done = ended | terminated
    else:
        truncated, done = torch.zeros_like(terminated), terminated
    clock = clock.masked_fill(done, 0)
    obs = final_obs
    if fresh is not None and fresh_obs is not None:
        # torch.where, not arithmetic: a NaN of the old episode must not survive in the new one
        state = tree_map(lambda new, old: torch.where(done, new, old), fresh, state)
        obs = torch.where(done.unsqueeze(1), fresh_obs, final_obs)
    return state, clock, TimeStep(obs, final_obs, reward, terminated, truncated, rest[0] if rest else {})


def draw(sim: Sim, dtype: torch.dtype, seed: int, lane: Tensor, tick: Tensor) -> tuple[State, Tensor]:
    """First states of episodes and their observations [N, O], by lane [N] and index of the vector step [N], int64."""
    # in float64 and then rounded: the bounds of a reset hold in every dtype
    state = cast(dtype, sim.init(uniform(seed, lane, tick, sim.n_random)))
    return state, sim.observe(state)


def _compile(f: Any) -> Any:
    # torch.compile allows 8 compilations of a code object, counting all environments: give each its own object
    code = f.__code__.replace()
    own = FunctionType(code, f.__globals__, code.co_name, None, f.__closure__)
    return torch.compile(own, dynamic=False, fullgraph=True)


class BatchedSim:
    """`n_envs` lanes of one `Sim` as a VecEnv: same-step auto-reset, true final observations, staggered time limits.

    first_lane: the number of its first lane: two of 8 lanes, from 0 and from 8 on, do what one of 16 does.
    seed:     every reset is a hash of (seed, lane, vector step), so lane 3 does the same whatever `n_envs` is. None
              takes one from torch's global generator.
    stagger:  lanes start with clocks uniform in [0, limit); else all time limits fall into the same step.
    compile:  fuse the step with torch.compile (some 10 s at the first step); its outputs are then buffers that the next
              step overwrites. The speed for many lanes depends on it.

    On a GPU a step reads nothing back and updates the state in place, so it can be captured in a CUDA graph; the seed
    is a constant of that graph.
    """

    def __init__(
        self,
        sim: Sim,
        n_envs: int,
        *,
        first_lane: int = 0,
        seed: int | None = None,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        stagger: bool = True,
        episode_length: int | None = None,
        compile: bool = False,
    ) -> None:
        if n_envs < 1:
            raise ValueError(f"BatchedSim needs n_envs >= 1, got {n_envs}")
        check_sizes(sim)
        limit = sim.episode_length if episode_length is None else episode_length
        if limit < 0:
            raise ValueError(f"episode_length must be >= 0 (0 = no limit), got {limit}")
        self.device = torch.device(device)
        self.sim, self.dtype, self.stagger, self.limit = sim.to(self.device, dtype), dtype, stagger, limit
        extras = check_form(self.sim, self.device, dtype)
        self.spec = EnvSpec(
            sim.obs_dim,
            sim.action_dim,
            sim.n_actions,
            len(sim.objectives) or 1,
            n_envs,
            limit,
            self.device,
            sim.nvec,
            sim.obs_parts,
            sim.extras,
            sim.objectives,
        )
        self.seed = int(torch.randint(2**62, ()).item()) if seed is None else seed
        self._sparse = self.device.type == "cpu" and n_envs > _SPARSE_LANES
        # On a GPU one step ahead only: a captured graph has no host that could refill a block.
        self._block = min(max(1, _DRAW_SIZE // n_envs), _DRAW_STEPS) if self.device.type == "cpu" else 1
        self._lane = torch.arange(first_lane, first_lane + n_envs, device=self.device)
        self._tick = torch.zeros(1, dtype=torch.int64, device=self.device)  # index of the draw that the next step uses
        self._clock = torch.zeros(n_envs, dtype=torch.int32, device=self.device)
        self._state: State = None
        self._step = self._compiled_step(extras) if compile else self._eager_step
        # worth a compilation where it runs for all lanes at every step: on a GPU
        self._draw = _compile(draw) if compile and self._block == 1 and not self._sparse else draw
        self._started = False

    def reset(self, seed: int | None = None) -> Tensor:
        """First observations [B, O]. A seed starts its random sequence anew, None goes on in the present one."""
        if seed is not None:
            self.seed = seed
            self._tick.zero_()
        noise = uniform(self.seed, self._lane, self._tick.expand(len(self._lane)), self.sim.n_random + 1)
        if self.limit and self.stagger:
            self._clock.copy_((noise[:, -1] * self.limit).long().clamp_(max=self.limit - 1))
        else:
            self._clock.zero_()
        self._tick += 1
        self._set_state(cast(self.dtype, self.sim.init(noise[:, :-1])))
        return self.sim.observe(self._state).clone()  # not a view of the state, which changes in place

    def step(self, action: Tensor) -> TimeStep:
        if not self._started:
            raise RuntimeError("call reset() before step()")
        check_action(type(self.sim).__name__, self.spec, action)
        with torch.no_grad():
            out = self._sparse_step(action) if self._sparse else self._step(action, *self._next_fresh())
            self._tick += 1
        return out

    def state_dict(self) -> dict[str, Tensor]:
        """Copies of everything that the next steps depend on; load it into an environment of the same task and size."""
        fields = {f"state.{name}": value.clone() for name, value in self._state._asdict().items()}
        seed = torch.tensor(self.seed, dtype=torch.int64)
        return {"seed": seed, "tick": self._tick.clone(), "clock": self._clock.clone(), **fields}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if state["clock"].shape != self._clock.shape:
            raise ValueError(f"state of {len(state['clock'])} lanes cannot be loaded into {len(self._clock)}")
        self.seed = int(state["seed"])
        self._tick.copy_(state["tick"])
        self._clock.copy_(state["clock"])
        template = self.sim.init(torch.zeros(1, self.sim.n_random, dtype=torch.float64, device=self.device))
        fields = {name: state[f"state.{name}"].to(self.device) for name in template._fields}
        self._set_state(cast(self.dtype, type(template)(**fields)))

    def close(self) -> None:
        pass

    def _set_state(self, state: State) -> None:
        if self._state is None:
            self._state = tree_map(torch.clone, state)
        else:  # in place: a captured graph and the compiled step know the state by its address
            tree_map(Tensor.copy_, self._state, state)
        self._row = self._block  # what was drawn ahead belongs to the old sequence
        self._started = True

    def _next_fresh(self) -> tuple[State, Tensor]:
        """The states and observations [B, O] that lanes ending in this step restart from."""
        if self._row == self._block or self._block == 1:
            n, k = len(self._lane), self._block
            ticks = (self._tick + torch.arange(k, device=self.device)).repeat_interleave(n)
            state, first_obs = self._draw(self.sim, self.dtype, self.seed, self._lane.repeat(k), ticks)
            obs = first_obs.T.unflatten(-1, (k, n)).unbind(-2)
            fields = (x.unflatten(-1, (k, n)).unbind(-2) for x in state)
            self._fresh = [(type(state)(*row), o.T) for *row, o in zip(*fields, obs, strict=True)]
            self._row = 0
        self._row += 1
        return self._fresh[self._row - 1]

    def _sparse_step(self, action: Tensor) -> TimeStep:
        out = self._step(action, None, None)
        # as int32: nonzero of 100,000 bool takes four times as long
        lane = torch.nonzero((out.terminated | out.truncated).int()).squeeze(1)
        if len(lane) == 0:
            return out
        ticks = self._tick.expand(len(lane))
        fresh, fresh_obs = self._draw(self.sim, self.dtype, self.seed, self._lane[lane], ticks)
        tree_map(lambda old, new: old.index_copy_(-1, lane, new), self._state, fresh)
        obs = out.obs.T.clone() if out.obs is out.final_obs else out.obs.T
        obs.index_copy_(1, lane, fresh_obs.T)
        return out._replace(obs=obs.T)

    def _eager_step(self, action: Tensor, fresh: State | None, fresh_obs: Tensor | None) -> TimeStep:
        state, clock, out = advance(self.sim, self.limit, self._state, self._clock, action, fresh, fresh_obs)
        tree_map(Tensor.copy_, self._state, state)
        self._clock.copy_(clock)
        return out

    def _compiled_step(self, told: Extras) -> Any:
        n, o, sim, limit = self.spec.n_envs, self.spec.obs_dim, self.sim, self.limit
        flag = torch.zeros(n, dtype=torch.uint8, device=self.device)
        reward = torch.zeros(len(sim.objectives) or 1, n, dtype=self.dtype, device=self.device).T
        reward = reward if sim.objectives else reward[:, 0]
        obs = torch.zeros(o, n, dtype=self.dtype, device=self.device).T
        # Outputs into the same buffers at every step: fresh blocks of megabytes cost more page faults than arithmetic.
        extras = {name: x.new_zeros(*x.shape[1:], n).movedim(-1, 0) for name, x in told.items()}
        final_obs = obs.clone(memory_format=torch.preserve_format)
        out = TimeStep(obs, final_obs, reward, flag, flag.clone(), extras)
        seen = out._replace(terminated=out.terminated.view(torch.bool), truncated=out.truncated.view(torch.bool))

        def write(buffer: Tensor, value: Tensor) -> None:
            if value.dtype == torch.bool:  # inductor's vectorised store of bool is 15 times slower than one of uint8
                value = torch.where(value, 1.0, 0.0).to(torch.uint8)
            buffer.copy_(value)

        def step_into(state: State, clock: Tensor, action: Tensor, fresh: State, fresh_obs: Tensor | None) -> None:
            new_state, new_clock, new_out = advance(sim, limit, state, clock, action, fresh, fresh_obs)
            tree_map(write, state, new_state)
            clock.copy_(new_clock)
            tree_map(write, out, new_out)

        fused = _compile(step_into)

        def step(action: Tensor, fresh: State | None, fresh_obs: Tensor | None) -> TimeStep:
            fused(self._state, self._clock, action, fresh, fresh_obs)
            return seen

        return step
