"""The logits: do the same weights give the same distributions when they are loaded again, or by another engine?"""

from typing import Any

import torch

from quantharm import engines
from quantharm.common.records.checks import CheckRecord
from quantharm.common.records.quantization import QuantizationRecord
from quantharm.forensics.checks.outcome import outcome
from quantharm.models.loading import set_compute_dtype
from quantharm.scoring.forward import last_hidden_states, output_head

RELOAD_LIMIT = {"cpu": 0.0, "cuda": 1e-6}  # nats
RELOAD_NOISE_FACTOR = 10.0  # some GPU kernels add in varying order: two passes of one load differ as well
RELOAD_CEILING = 1e-2  # nats; kernels that vary by more say nothing about a 4-bit method's divergence, 0.01 to 0.06
ENGINE_LIMIT = 0.02  # nats; llama.cpp rounds activations to 8 bits: 0.003 on a model of 135M parameters
ENGINE_TOKENS = 256


def mean_kl(first: torch.Tensor, second: torch.Tensor) -> float:
    """Mean over positions of |KL| in nats; first, second: [T, vocabulary] logits. Exactly 0 for equal logits."""
    if torch.equal(first, second):
        return 0.0
    ln_p, ln_q = torch.log_softmax(first.double(), -1), torch.log_softmax(second.double(), -1)
    return float((ln_p.exp() * (ln_p - ln_q)).sum(-1).abs().mean())


def check_reload(
    first: torch.Tensor, second: torch.Tensor, device: str, repeated: torch.Tensor | None = None
) -> CheckRecord:
    """Two loads of the same files give the same logits; first, second: [T, vocabulary] of the same tokens.

    repeated: logits of another pass of the first load. Two loads may differ by RELOAD_NOISE_FACTOR times as much as two
    passes of one, up to RELOAD_CEILING (AWQ's Triton kernel adds with atomics: 2e-4 nats on the built-in model).
    """
    value, noise = mean_kl(first, second), 0.0 if repeated is None else mean_kl(first, repeated)
    limit = max(RELOAD_LIMIT[device], min(RELOAD_NOISE_FACTOR * noise, RELOAD_CEILING))
    return outcome(
        "reload",
        value <= limit,
        value,
        limit,
        "mean KL in nats between two loads of the checkpoint (largest difference of a logit "
        f"{float((first - second).abs().max()):.3g}; between two passes of one load {noise:.3g} nats)",
    )


def check_engine(record: QuantizationRecord, model: Any, device: str, tokenizer: Any, text: str) -> CheckRecord:
    """The engine's distributions against those of the same weights in transformers, multiplied in float32.

    model: the cell's in transformers, which computes in float32 from here on. The engine's cache is exact here; the
    cell's own figures have the cost of a quantized one.
    """
    name = engines.other_engine(record["settings"])
    if name is None:
        return outcome("engine", None, None, ENGINE_LIMIT, "this cell runs in transformers")
    tokens = tokenizer(text[:16_000])["input_ids"][:ENGINE_TOKENS]
    settings = {key: value for key, value in record["settings"].items() if key != "kv_cache"}
    with_exact_cache = record.copy()
    with_exact_cache["settings"] = settings
    served = engines.open_cell(with_exact_cache, device)
    set_compute_dtype(model, record["quantizer"], record["dtype"], device, "float32")
    kl = mean_kl(*(output_head(each)(last_hidden_states(each, tokens)).cpu() for each in (model, served)))
    served.close()
    explanation = (
        f"mean KL divergence of {name} from the same file's weights multiplied in float32, over {len(tokens)} "
        "positions of the evaluation text, nats"
    )
    return outcome("engine", kl <= ENGINE_LIMIT, kl, ENGINE_LIMIT, explanation)
