"""Noise of exploding variance with EDM's preconditioning, arXiv:2206.00364, as BESO samples it, arXiv:2304.02532."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from ctrlrl.functional.predictions import edm_denoised, edm_scales, edm_target, log_logistic_levels, noisy
from ctrlrl.functional.samplers import edm_ancestral, edm_ddim, edm_heun
from ctrlrl.functional.schedules import exponential_levels, karras_levels, linear_levels
from ctrlrl.policies.diffusion import Noise, Predict

LEVEL_LISTS = {"karras": karras_levels, "exponential": exponential_levels, "linear": linear_levels}
SAMPLERS = ("ddim", "euler", "heun", "ancestral")  # the first two are the same steps


class EDMProcess(nn.Module):
    """x = data + sigma noise; the network is told sigma, sees c_in x, and says F: the data are c_skip x + c_out F."""

    def __init__(
        self,
        sampler: str,
        n_steps: int,
        levels: str,
        sigma_min: float,
        sigma_max: float,
        data_std: float,
        *,
        warm: Sequence[float] = (),
        clip_steps: bool = False,
    ):
        """warm: the deviations at which a shifted former sample goes on from; () = samples begin at noise.

        clip_steps: x is bound to [-1, 1] after every step, not after the last one alone.
        """
        super().__init__()
        self.sampler, self.data_std, self.warm = sampler, data_std, tuple(warm)
        self.range, self.levels = (sigma_min, sigma_max), LEVEL_LISTS[levels](n_steps, sigma_max, sigma_min)
        self.bound = 1.0 if clip_steps else None

    def lesson(self, data: Tensor, noise: Tensor, uniform: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the network sees of noisy chunks [n, H, A], their deviations [n], and what it shall say of them."""
        sigma = log_logistic_levels(uniform, *self.range, median=self.data_std)
        wide = sigma.view(-1, 1, 1)
        x = noisy(data, noise, 1.0, wide)
        return edm_scales(wide, self.data_std)[2] * x, sigma, edm_target(data, x, wide, self.data_std)

    def sample(self, predict: Predict, x: Tensor, noise: Noise) -> Tensor:
        return self._solve(predict, self.range[1] * x, self.levels, noise)

    def resume(self, predict: Predict, guess: Tensor, noise: Noise) -> Tensor:
        return self._solve(predict, guess, (*self.warm, 0.0), noise)

    def _solve(self, predict: Predict, x: Tensor, levels: Sequence[float], noise: Noise) -> Tensor:
        def denoised(x: Tensor, sigma: float) -> Tensor:
            seen = edm_scales(sigma, self.data_std)[2] * x
            return edm_denoised(predict(seen, sigma), x, sigma, self.data_std)

        if self.sampler == "heun":
            x = edm_heun(denoised, x, levels, clip=self.bound)
        elif self.sampler == "ancestral":
            x = edm_ancestral(denoised, x, levels, clip=self.bound, noise=noise)
        else:
            x = edm_ddim(denoised, x, levels, clip=self.bound)
        return x.clamp(-1.0, 1.0)
