"""Learning with a language model against TRL's GRPOTrainer: the same model, prompts, rewards, batch and steps."""

from __future__ import annotations

import copy
import tempfile
import time
from importlib.metadata import version
from typing import Any

import torch

from ctrlrl.bench.rows import Lap, rate
from ctrlrl.config import TrainConfig
from ctrlrl.loops import training_loop

FOREVER = 10**15
WARM = 3  # updates before the first lap
LOSSES = {"seq_mean": "grpo", "token_mean": "dapo", "const": "dr_grpo"}  # TRL's names of aggregations


class Answering:
    """Tokens/s of generation, judging and learning: places for tokens, N responses x the longest length an update."""

    name = "ctrlrl"

    def __init__(self, cfg: TrainConfig, seconds: float):
        self.loop: Any = training_loop(cfg)
        self.loop.total_steps, self.seconds = FOREVER, seconds
        self.model = copy.deepcopy(self.loop.learner.model.module)  # for the peer, before the first step
        for _ in range(WARM):
            self._work()

    def _work(self) -> int:
        before = self.loop.env_steps
        self.loop.iterate()
        if self.loop.env.spec.device.type == "cuda":
            torch.cuda.synchronize()
        return (self.loop.env_steps - before) * self.loop.env.max_new_tokens

    def lap(self) -> Lap:
        return rate(self._work, self.seconds)


class TRLTraining:
    """The same of TRL's trainer, without its logging, saving and gradient checkpointing."""

    def __init__(self, ours: Answering, cfg: TrainConfig, seconds: float):
        try:
            from datasets import Dataset
            from transformers import PrinterCallback
            from trl import GRPOConfig, GRPOTrainer
        except ImportError:
            raise ValueError("vs=trl needs the trl package: pip install 'ctrlrl[trl]'") from None
        algo, env = cfg.algo, ours.loop.env
        if algo.advantage != "group_z" or algo.aggregation not in LOSSES or algo.ratio != "token":
            raise ValueError(f"vs=trl measures GRPOTrainer; algo={algo.name} is another method. Use algo=grpo.")
        self.name, self.seconds = f"trl {version('trl')}, GRPOTrainer", seconds
        steps = algo.n_epochs * algo.n_minibatches
        self.tokens = cfg.n_envs * env.max_new_tokens / steps  # of one optimiser step
        self._scratch = tempfile.TemporaryDirectory()
        high = algo.clip_range if algo.clip_range_high is None else algo.clip_range_high
        args = GRPOConfig(
            output_dir=self._scratch.name,
            per_device_train_batch_size=cfg.n_envs // algo.n_minibatches,
            steps_per_generation=algo.n_minibatches,
            num_iterations=algo.n_epochs,
            gradient_accumulation_steps=1,
            num_generations=algo.group_size,
            max_completion_length=env.max_new_tokens,
            temperature=algo.temperature,
            learning_rate=algo.learning_rate,
            lr_scheduler_type="constant",
            weight_decay=algo.weight_decay,
            max_grad_norm=algo.max_grad_norm or 0.0,
            loss_type=LOSSES[algo.aggregation],
            epsilon=algo.clip_range,
            epsilon_high=high,
            beta=algo.kl_coef if algo.kl == "loss" else 0.0,
            max_steps=10**9,
            gradient_checkpointing=False,
            bf16=cfg.dtype == "bfloat16",
            use_cpu=env.spec.device.type == "cpu",
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            seed=cfg.seed,
        )
        data = Dataset.from_dict({"prompt": env.prompts.prompts, **env.prompts.columns})
        self.clock = _clock(steps)
        self.trainer = GRPOTrainer(
            model=ours.model,
            reward_funcs=list(env.rewards.fns),
            args=args,
            train_dataset=data,
            processing_class=env.tokenizer,
            callbacks=[self.clock],
        )
        self.trainer.remove_callback(PrinterCallback)

    def lap(self) -> Lap:
        """Counted from the end of a first batch's steps on, so that the trainer's own start is not in it."""
        self.clock.begin(self.seconds)
        self.trainer.train()
        wall, cpu, steps = self.clock.told
        return Lap(steps * self.tokens / wall, wall, cpu)


def _clock(warm: int) -> Any:
    """A callback that ends training after some seconds; `warm` steps are not counted."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        told: tuple[float, float, int]

        def begin(self, seconds: float) -> None:
            self.seconds, self.steps = seconds, 0

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.steps += 1
            if self.steps == warm:
                self.wall, self.cpu = time.perf_counter(), time.process_time()
            elif self.steps > warm and (self.steps - warm) % warm == 0:
                elapsed = time.perf_counter() - self.wall
                if elapsed >= self.seconds:
                    self.told = elapsed, time.process_time() - self.cpu, self.steps - warm
                    control.should_training_stop = True

    return Clock()
