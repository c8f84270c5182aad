"""Record one episode of a policy as a film."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import Tensor

from ctrlrl.train.evaluate import evaluate
from ctrlrl.types import VecEnv


def record(
    act: Callable[[Tensor], Tensor], env: VecEnv, out: Path, *, seed: int, fps: float, max_frames: int = 300
) -> float:
    """Write the first `max_frames` steps of one episode to `out` (.mp4 or .gif); returns the episode's return.

    env: one lane with a `render(lane)` that gives uint8 [height, width, 3]. RuntimeError where it cannot draw.
    """
    try:
        import imageio.v3 as imageio
    except ImportError:
        raise RuntimeError("video needs imageio: pip install 'ctrlrl[report]'") from None
    frames: list[Any] = []

    def keep() -> None:
        if len(frames) < max_frames:
            frames.append(env.render(0))  # type: ignore[attr-defined]

    episode = evaluate(act, env, episodes=1, seed=seed, on_step=keep)
    out.parent.mkdir(parents=True, exist_ok=True)
    kwargs: dict[str, Any] = {"codec": "libx264", "macro_block_size": 2} if out.suffix == ".mp4" else {}
    imageio.imwrite(out, frames, fps=round(fps), **kwargs)
    return episode.returns[0].sum().item()
