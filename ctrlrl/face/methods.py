"""The methods for language models as classes: `GRPO(model, tokenizer, reward_fns=[...], dataset=prompts)`."""

from __future__ import annotations

from ctrlrl.face.language import LanguageAgent


class GRPO(LanguageAgent):
    """Group-relative policy optimisation, arXiv:2402.03300."""

    algo = "grpo"


class DrGRPO(LanguageAgent):
    """GRPO without its two biases, arXiv:2503.20783."""

    algo = "dr_grpo"


class DAPO(LanguageAgent):
    """Decoupled clipping and dynamic sampling, arXiv:2503.14476."""

    algo = "dapo"


class GSPO(LanguageAgent):
    """Group sequence policy optimisation, arXiv:2507.18071."""

    algo = "gspo"


class GBPO(LanguageAgent):
    """Group bounded policy optimisation, arXiv:2604.18578."""

    algo = "gbpo"


class BPOTokens(LanguageAgent):
    """Bounded policy optimisation with a mean and a median value, arXiv:2604.18578."""

    algo = "bpo_tokens"


class PPOTokens(LanguageAgent):
    """PPO with a value head, on tokens, arXiv:1707.06347."""

    algo = "ppo_tokens"


class TPPO(LanguageAgent):
    """Truncated PPO; experimental, arXiv:2506.15050."""

    algo = "tppo"


class SPO(LanguageAgent):
    """Single-stream policy optimisation, arXiv:2509.13232."""

    algo = "spo"


class HolderPO(LanguageAgent):
    """Hoelder policy optimisation; experimental, arXiv:2605.12058."""

    algo = "holder_po"


class MCGRPO(LanguageAgent):
    """Median-centred GRPO, arXiv:2601.22582."""

    algo = "mc_grpo"


class NGRPO(LanguageAgent):
    """Negative-enhanced GRPO, arXiv:2509.18851."""

    algo = "ngrpo"


class BNPO(LanguageAgent):
    """Beta-normalised policy optimisation, arXiv:2506.02864."""

    algo = "bnpo"


class GDPO(LanguageAgent):
    """Group reward-decoupled normalisation of several rewards, arXiv:2601.05242."""

    algo = "gdpo"


class BAPO(LanguageAgent):
    """Balanced policy optimisation with adaptive clipping; experimental, arXiv:2510.18927."""

    algo = "bapo"


class R2VPO(LanguageAgent):
    """Ratio-variance regularised policy optimisation; experimental, arXiv:2601.03320."""

    algo = "r2vpo"


class ETR(LanguageAgent):
    """Elastic trust regions; experimental, arXiv:2601.03723."""

    algo = "etr"


class TOPR(LanguageAgent):
    """Tapered off-policy REINFORCE, arXiv:2503.14286."""

    algo = "topr"


class ReMax(LanguageAgent):
    """ReMax: the greedy response is the baseline, arXiv:2310.10505."""

    algo = "remax"


class RLOO(LanguageAgent):
    """REINFORCE leave-one-out, arXiv:2402.14740."""

    algo = "rloo"


class ReinforcePP(LanguageAgent):
    """REINFORCE++, arXiv:2501.03262."""

    algo = "reinforce_pp"


class ReinforcePPBaseline(LanguageAgent):
    """REINFORCE++ with the group's mean as baseline, arXiv:2501.03262."""

    algo = "reinforce_pp_baseline"


class AEPO(LanguageAgent):
    """Arbitrary entropy policy optimisation, arXiv:2510.08141."""

    algo = "aepo"


class CISPO(LanguageAgent):
    """Clipped importance weights, arXiv:2506.13585."""

    algo = "cispo"


class SAPO(LanguageAgent):
    """Soft adaptive policy optimisation, arXiv:2511.20347."""

    algo = "sapo"


class GMPO(LanguageAgent):
    """Geometric-mean policy optimisation, arXiv:2507.20673."""

    algo = "gmpo"


class OPO(LanguageAgent):
    """Optimal reward baseline, on the policy, arXiv:2505.23585."""

    algo = "opo"


class DPO(LanguageAgent):
    """Direct preference optimisation, arXiv:2305.18290."""

    algo = "dpo"


class DirectAdvantage(LanguageAgent):
    """Direct advantage regression, whole responses; experimental, arXiv:2412.18279."""

    algo = "direct_advantage"


class SFT(LanguageAgent):
    """Imitation of all recorded responses."""

    algo = "sft"


class SimplePOTokens(LanguageAgent):
    """Simple policy optimisation's quadratic, on tokens, arXiv:2401.16025."""

    algo = "simple_po_tokens"


METHODS: tuple[type[LanguageAgent], ...] = (
    GRPO,
    DrGRPO,
    DAPO,
    GSPO,
    GBPO,
    BPOTokens,
    PPOTokens,
    TPPO,
    SPO,
    HolderPO,
    MCGRPO,
    NGRPO,
    BNPO,
    GDPO,
    BAPO,
    R2VPO,
    ETR,
    TOPR,
    ReMax,
    RLOO,
    ReinforcePP,
    ReinforcePPBaseline,
    AEPO,
    CISPO,
    SAPO,
    GMPO,
    OPO,
    DPO,
    DirectAdvantage,
    SFT,
    SimplePOTokens,
)
