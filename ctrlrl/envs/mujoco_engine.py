"""Two ways to step B copies of a MuJoCo model on CPU threads, behind one face.

`RolloutEngine` hands all worlds to mujoco.rollout's C threads: fastest, but every control step starts the constraint
solver cold, and only positions and velocities come back. `WorldEngine` keeps one MjData a world and steps them on
Python threads (mj_step drops the interpreter lock): the warm start is kept, so trajectories equal Gymnasium's to the
last bit, and every MjData field can be read.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from ctrlrl.envs.dynamics import Dynamics, change_density, change_model

_MISSING = "MuJoCo tasks need the mujoco package: pip install 'ctrlrl[mujoco]'"


def import_mujoco() -> Any:
    if "MUJOCO_GL" not in os.environ and "DISPLAY" not in os.environ:
        os.environ["MUJOCO_GL"] = "egl"  # read when mujoco is imported; without a display glfw cannot draw
    try:
        import mujoco
    except ImportError as error:
        raise ImportError(_MISSING) from error
    return mujoco


def load_model(file: str, changes: Dynamics | None = None, robot: str = "", n_targets: int = 0) -> Any:
    """The MjModel of a file that Gymnasium ships, with changed dynamics; ValueError where `robot` cannot have them.

    n_targets: so many movable targets in the place of the reacher's only one.
    """
    mujoco = import_mujoco()
    spec = importlib.util.find_spec("gymnasium")
    if spec is None or spec.origin is None:
        raise ImportError(_MISSING)
    path = Path(spec.origin).parent / "envs" / "mujoco" / "assets" / file
    handler = mujoco.get_mju_user_warning()
    mujoco.set_mju_user_warning(lambda message: None)  # half_cheetah.xml uses a deprecated attribute, at every load
    try:
        dense = changes is None or changes.density_scale == 1.0
        if dense and n_targets == 0:
            model = mujoco.MjModel.from_xml_path(str(path))
        else:
            spec = mujoco.MjSpec.from_file(str(path))
            if n_targets:
                _add_targets(mujoco, spec, n_targets)
            if changes is not None and not dense:
                change_density(spec, changes.density_scale, robot)
            model = spec.compile()
        if changes is not None:
            change_model(model, changes, robot)
        return model
    finally:
        mujoco.set_mju_user_warning(handler)


def _add_targets(mujoco: Any, spec: Any, n: int) -> None:
    """As the reacher's own target, which goes: a ball that slides along x and y and touches nothing."""
    spec.delete(spec.body("target"))
    for i in range(1, n + 1):
        body = spec.worldbody.add_body(name=f"target{i}", pos=[0.1, -0.1, 0.01])
        for name, axis, ref in (("x", [1, 0, 0], 0.1), ("y", [0, 1, 0], -0.1)):
            body.add_joint(
                name=f"target{i}_{name}",
                type=mujoco.mjtJoint.mjJNT_SLIDE,
                axis=axis,
                ref=ref,
                range=[-0.27, 0.27],
                limited=True,
                armature=0.0,
                damping=0.0,
            )
        shape = mujoco.mjtGeom.mjGEOM_SPHERE
        body.add_geom(name=f"target{i}", type=shape, size=[0.009, 0, 0], conaffinity=0, contype=0)


class Engine(Protocol):
    qpos: Tensor  # [B, nq]; this and the following keep their storage for life
    qvel: Tensor  # [B, nv]
    control: Tensor  # [B, nu], to be filled before `advance`
    fields: dict[str, Tensor]

    def advance(self) -> Tensor: ...  # [B] bool: False where the simulation broke down
    def place(self, lanes: Tensor, rows: Tensor) -> None: ...  # rows [n, nq + nv]: where new episodes begin
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...
    def close(self) -> None: ...


class RolloutEngine:
    def __init__(self, model: Any, n_envs: int, n_threads: int, frame_skip: int) -> None:
        mujoco = import_mujoco()
        from mujoco import rollout

        size = mujoco.mj_stateSize(model, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        f64 = torch.float64
        self._state = torch.zeros(n_envs, size, dtype=f64)  # time, qpos, qvel: none of the models has more
        self._out = torch.zeros(n_envs, frame_skip, size, dtype=f64)
        self._last = self._out[:, -1]
        self._controls = torch.zeros(n_envs, frame_skip, model.nu, dtype=f64)
        self.control = torch.zeros(n_envs, model.nu, dtype=f64)
        self._spread = self.control.unsqueeze(1).expand_as(self._controls)
        self.qpos = self._state[:, 1 : 1 + model.nq]
        self.qvel = self._state[:, 1 + model.nq : 1 + model.nq + model.nv]
        self.fields: dict[str, Tensor] = {}
        self._least_time = (frame_skip - 0.5) * model.opt.timestep
        self._rollout = rollout.Rollout(nthread=n_threads if n_threads > 1 else 0)  # 0: on the calling thread
        sensors = torch.zeros(n_envs, frame_skip, model.nsensordata, dtype=f64)
        self._arguments = ([model] * n_envs, [mujoco.MjData(model) for _ in range(n_threads)], self._state.numpy())
        self._options = {
            "control": self._controls.numpy(), "state": self._out.numpy(), "sensordata": sensors.numpy(),
            "nstep": frame_skip, "skip_checks": True, "chunk_size": max(1, n_envs // (8 * n_threads)),
        }  # fmt: skip

    def advance(self) -> Tensor:
        self._controls.copy_(self._spread)
        self._rollout.rollout(*self._arguments, **self._options)
        # an unstable world is put back to time zero by MuJoCo, or stops short
        fine = self._last[:, 0] - self._state[:, 0] > self._least_time
        self._state.copy_(self._last)
        return fine

    def place(self, lanes: Tensor, rows: Tensor) -> None:
        self._state[:, 1:][lanes] = rows  # time runs on: no model depends on it

    def state_dict(self) -> dict[str, Tensor]:
        return {"physics": self._state.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self._state.copy_(state["physics"])

    def close(self) -> None:
        if self._rollout.rollout_ is not None:
            self._rollout.close()


class WorldEngine:
    def __init__(self, model: Any, n_envs: int, n_threads: int, frame_skip: int, needs: tuple[str, ...]) -> None:
        mujoco = import_mujoco()
        self._mujoco, self._model, self._frame_skip = mujoco, model, frame_skip
        self._datas = [mujoco.MjData(model) for _ in range(n_envs)]
        self._forces = mujoco.mj_rnePostConstraint if "cfrc_ext" in needs else None
        self._least_time = (frame_skip - 0.5) * model.opt.timestep
        self._spec = mujoco.mjtState.mjSTATE_INTEGRATION
        self._threads = ThreadPoolExecutor(n_threads - 1) if n_threads > 1 else None
        self._n_helpers = n_threads - 1
        names = ("qpos", "qvel", *needs)
        # views of MuJoCo's own memory: one stack a field gathers all worlds
        self._views = {k: [torch.from_numpy(getattr(d, k)) for d in self._datas] for k in names}
        self._gathered = {k: torch.stack(v) for k, v in self._views.items()}
        self.qpos, self.qvel = self._gathered["qpos"], self._gathered["qvel"]
        self.fields = {k: self._gathered[k] for k in needs}
        self.control = torch.zeros(n_envs, model.nu, dtype=torch.float64)
        self._control_rows = list(self.control.unbind(0))
        self._control_views = [torch.from_numpy(d.ctrl) for d in self._datas]

    def _work(self, datas: Iterator[Any]) -> None:
        step, forces, model, n = self._mujoco.mj_step, self._forces, self._model, self._frame_skip
        for data in datas:  # all threads draw from one iterator: the interpreter lock makes `next` atomic
            step(model, data, n)
            if forces is not None:
                forces(model, data)

    def _gather(self) -> None:
        for name, out in self._gathered.items():
            torch.stack(self._views[name], out=out)

    def advance(self) -> Tensor:
        torch._foreach_copy_(self._control_views, self._control_rows)
        before = [d.time for d in self._datas]
        datas = iter(self._datas)
        helpers = [self._threads.submit(self._work, datas) for _ in range(self._n_helpers)] if self._threads else []
        self._work(datas)
        for helper in helpers:
            helper.result()
        self._gather()
        return torch.tensor([d.time - t > self._least_time for d, t in zip(self._datas, before, strict=True)])

    def place(self, lanes: Tensor, rows: Tensor) -> None:
        nq = self._model.nq
        for i, row in zip(lanes.tolist(), rows.numpy(), strict=True):
            data = self._datas[i]
            self._mujoco.mj_resetData(self._model, data)
            data.qpos[:], data.qvel[:] = row[:nq], row[nq:]
            data.time = 1.0  # not zero, so that MuJoCo's own reset of an unstable world shows even in the first step
            self._mujoco.mj_forward(self._model, data)
            for name, out in self._gathered.items():
                out[i] = self._views[name][i]

    def state_dict(self) -> dict[str, Tensor]:
        size = self._mujoco.mj_stateSize(self._model, self._spec)
        state = torch.zeros(len(self._datas), size, dtype=torch.float64)
        for data, row in zip(self._datas, state.numpy(), strict=True):
            self._mujoco.mj_getState(self._model, data, row, self._spec)
        return {"physics": state, **{f"field/{k}": v.clone() for k, v in self.fields.items()}}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for data, row in zip(self._datas, state["physics"].double().numpy(), strict=True):
            self._mujoco.mj_setState(self._model, data, row, self._spec)
        for name in self.fields:
            torch._foreach_copy_(self._views[name], list(state[f"field/{name}"].unbind(0)))
        self._gather()

    def close(self) -> None:
        if self._threads is not None:
            self._threads.shutdown()
