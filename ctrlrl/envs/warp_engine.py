"""B worlds of a MuJoCo model on MuJoCo Warp: float32, tensors shared with torch, the control step one captured graph.

Nothing here reads the device after the engine is made, except `overflowed`, which is for log points.
"""

from __future__ import annotations

from itertools import combinations
from typing import Any

import torch
from torch import Tensor

from ctrlrl.envs.mujoco_engine import import_mujoco

_MISSING = "env.backend=mujoco_warp needs the mujoco-warp package: pip install 'ctrlrl[warp]'"
_FORCES = ("cfrc_ext", "qfrc_actuator", "qfrc_constraint")  # zero in a world that has not moved yet
_LARGEST = 1e10  # mjMAXVAL: what MuJoCo takes for a broken simulation
_BETWEEN_PARTS = 32  # contacts of a robot with itself; random actions reached 6 with the humanoids
_ROUND = 16  # Warp's solver works on tiles of 16 rows


def import_warp() -> tuple[Any, Any]:
    """(warp, mujoco_warp)"""
    import_mujoco()
    try:
        import warp

        warp.config.log_level = max(warp.config.log_level, warp.LOG_WARNING)  # else it greets on stdout
        import mujoco_warp
    except ImportError:
        raise ValueError(_MISSING) from None
    warp.init()
    return warp, mujoco_warp


def adapt_model(model: Any) -> tuple[str, ...]:
    """Change in place what MuJoCo Warp does not have but can replace; a line for each difference to MuJoCo."""
    mujoco = import_mujoco()
    notices = []
    if model.opt.solver == mujoco.mjtSolver.mjSOL_PGS:
        model.opt.solver = mujoco.mjtSolver.mjSOL_NEWTON
        notices.append(
            "MuJoCo Warp has no PGS solver, which the model asks for: Newton's method takes its place, so contact "
            "forces differ a little from Gymnasium's"
        )
    free = (model.jnt_type == mujoco.mjtJoint.mjJNT_FREE).any()  # a planar robot's pyramid has the same edges turned
    if free and model.opt.cone == mujoco.mjtCone.mjCONE_PYRAMIDAL:
        notices.append(
            "where a capsule stands on the ground within 30 degrees of upright, MuJoCo Warp turns the friction pyramid "
            "of the contact: motions differ from Gymnasium's from the first such contact on"
        )
    return tuple(notices)


def contact_room(model: Any, scale: float = 1.0) -> tuple[int, int]:
    """(contacts, constraint rows) that one world gets memory for.

    Contacts with the ground and other fixed things: the most that the shapes allow. Contacts between moving parts: the
    same, but at most _BETWEEN_PARTS. Rows: those contacts', and one for each limit and dry friction, six for each
    equality. So only a robot with many parts that touch each other (the humanoids) can outgrow it.
    """
    ground, ground_rows, parts, parts_rows, rows_each = 0, 0, 0, 0, 1
    for i, j in combinations(range(model.ngeom), 2):
        if not _collide(model, i, j):
            continue
        n, dim = _most_contacts(model, i, j), max(model.geom_condim[i], model.geom_condim[j])
        rows = 1 if dim == 1 else 2 * (dim - 1)  # edges of the friction pyramid
        if 0 in model.body_weldid[model.geom_bodyid[[i, j]]]:
            ground, ground_rows = ground + n, ground_rows + n * rows
        else:
            parts, parts_rows, rows_each = parts + n, parts_rows + n * rows, max(rows_each, rows)
    limits = model.jnt_limited.sum() + model.tendon_limited.sum()
    friction = (model.dof_frictionloss > 0).sum() + (model.tendon_frictionloss > 0).sum()
    contacts = ground + min(parts, _BETWEEN_PARTS)
    n_rows = ground_rows + min(parts_rows, _BETWEEN_PARTS * rows_each) + limits + friction + 6 * model.neq
    return max(1, int(scale * contacts)), _ROUND * max(1, -int(-scale * n_rows // _ROUND))


def _collide(model: Any, i: int, j: int) -> bool:
    """MuJoCo's filter: not within a body, not between parent and child, and by the bit masks."""
    weld, parent = model.body_weldid, model.body_parentid
    a, b = weld[model.geom_bodyid[i]], weld[model.geom_bodyid[j]]
    if a == b or (a and b and (a == weld[parent[b]] or b == weld[parent[a]])):
        return False
    masks = model.geom_contype[[i, j]] & model.geom_conaffinity[[j, i]]
    return bool(masks.any())


def _most_contacts(model: Any, i: int, j: int) -> int:
    shape = import_mujoco().mjtGeom
    kinds = {int(model.geom_type[i]), int(model.geom_type[j])}
    if int(shape.mjGEOM_SPHERE) in kinds:
        return 1
    return 2 if kinds <= {int(shape.mjGEOM_PLANE), int(shape.mjGEOM_CAPSULE)} else 8


class WarpEngine:
    """qpos [B, nq], qvel [B, nv], control [B, nu] and `fields` are views of Warp's own arrays and stay so for life.

    captures counts the graphs recorded: the control step, and the kinematics of new episodes where a task needs them.
    """

    def __init__(
        self, model: Any, n_envs: int, frame_skip: int, needs: tuple[str, ...], device: torch.device, room: float
    ) -> None:
        self._wp, self._mjw = import_warp()
        self._needs = needs
        self.room = contact_room(model, room)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", torch.cuda.current_device())
        self.device = device
        self._torch_stream: Any = None
        self._stream: Any = None
        self.captures = 0
        with self._wp.ScopedDevice(self._wp.device_from_torch(device)) as where:
            self._model = self._mjw.put_model(model)
            self._model.opt.warn_overflow = 0  # no lines from inside a kernel: `overflowed` tells
            if where.is_cuda:
                self._model.opt.graph_conditional = self._wp.is_conditional_graph_supported()
            self._data = self._mjw.make_data(model, n_envs, nconmax=self.room[0], njmax=self.room[1])
            self._physics_steps(1)  # compiles and loads all kernels: not to be done while a graph is recorded
            self._pose()
            self._step_graph = self._capture(lambda: self._physics_steps(frame_skip))
            self._pose_graph = self._capture(self._pose) if needs else None
            self._wp.synchronize_device()
        self.qpos, self.qvel, self.control = (self._view(k) for k in ("qpos", "qvel", "ctrl"))
        self.fields = {k: self._view(k) for k in needs}
        # all that the next step depends on besides the control; no task's actuators have an activation state
        self._state = {k: self._view(k) for k in ("qpos", "qvel", "qacc_warmstart", "time", "act")}
        self._overflow = self._view("overflow")
        self._overflow.zero_()
        kinds = self._mjw.OverflowType
        self._lost = int(kinds.NEFC | kinds.NJMAX_NNZ | kinds.BROADPHASE | kinds.NARROWPHASE | kinds.CCD)

    def advance(self) -> Tensor:
        """One control step; [B] bool: False where the simulation broke down."""
        self._launch(self._step_graph)
        return (self.qpos.abs() < _LARGEST).all(1) & (self.qvel.abs() < _LARGEST).all(1)  # NaN is not less either

    def place(self, lanes: Tensor, qpos: Tensor, qvel: Tensor) -> None:
        """Begin anew at qpos [B, nq] and qvel [B, nv] in the lanes [B] that are True. Poses are refreshed in all."""
        self.qpos.copy_(torch.where(lanes.unsqueeze(1), qpos.float(), self.qpos))
        self.qvel.copy_(torch.where(lanes.unsqueeze(1), qvel.float(), self.qvel))
        for name in ("qacc_warmstart", "time", "act"):
            state = self._state[name]
            state.masked_fill_(lanes.view(-1, *[1] * (state.ndim - 1)), 0.0)
        for name in _FORCES:
            if name in self.fields:
                force = self.fields[name]
                force.masked_fill_(lanes.view(-1, *[1] * (force.ndim - 1)), 0.0)
        if self._pose_graph is not None:
            self._launch(self._pose_graph)

    def overflowed(self) -> int:
        """In how many worlds contacts or constraints were dropped for want of memory; reads the device."""
        return int((self._overflow & self._lost).ne(0).sum())

    def state_dict(self) -> dict[str, Tensor]:
        return {f"physics/{k}": v.clone() for k, v in self._state.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, view in self._state.items():
            view.copy_(state[f"physics/{name}"])

    def _view(self, name: str) -> Tensor:
        return self._wp.to_torch(getattr(self._data, name), requires_grad=False)

    def _physics_steps(self, n: int) -> None:
        for _ in range(n):
            self._mjw.step(self._model, self._data)
        if "cfrc_ext" in self._needs:
            self._mjw.rne_postconstraint(self._model, self._data)

    def _pose(self) -> None:
        """What tasks read of a state beyond positions and velocities, without forces."""
        self._mjw.kinematics(self._model, self._data)
        self._mjw.com_pos(self._model, self._data)
        self._mjw.com_vel(self._model, self._data)

    def _capture(self, run: Any) -> Any:
        with self._wp.ScopedCapture() as capture:
            run()
        self.captures += 1
        return capture.graph

    def _launch(self, graph: Any) -> None:
        if self.device.type == "cuda":  # in the order of torch's own work
            current = torch.cuda.current_stream(self.device)
            if current != self._torch_stream:
                self._torch_stream, self._stream = current, self._wp.stream_from_torch(current)
        self._wp.capture_launch(graph, stream=self._stream)
