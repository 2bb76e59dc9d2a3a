"""Train the built-in reference model: a Mistral-shaped language model of 10.5M parameters, from text, on one GPU.

    python train.py --train train.1.txt.xz train.2.txt.xz --validation valid.txt.xz --output OUT
    python train.py --evaluate valid.txt.xz wiki.test.raw --output OUT        # figures of a finished model

Texts are UTF-8 (.xz or plain); documents end with a line `<|endoftext|>`. The tokenizer (byte-level BPE) is trained on
the training text first, unless OUT already holds one. Hidden matrices are trained with Muon (Jordan et al. 2024),
embeddings, head and norms with AdamW; both follow one warm-up and decay. The defaults are the recipe of the
model beside this file (README.md). Needs torch, transformers 5, tokenizers and numpy.
"""

import argparse
import json
import lzma
import math
import re
import time
from pathlib import Path

import numpy
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

CONTEXT = 1024
ROPE_THETA = 10000.0  # MistralConfig's default
CONFIG = {
    "vocab_size": 8192,
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 8,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": CONTEXT,
    "sliding_window": None,
    "rms_norm_eps": 1e-5,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "tie_word_embeddings": False,
}


def read_documents(path: Path) -> list[str]:
    """The documents of one text file, without their end marker."""
    data = lzma.open(path).read() if path.suffix == ".xz" else path.read_bytes()
    return [d for d in data.decode("utf-8").split("\n<|endoftext|>\n") if d.strip()]


def train_tokenizer(documents: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=CONFIG["vocab_size"],
        special_tokens=["<s>", "</s>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=CONTEXT
    )


def encode(tokenizer: PreTrainedTokenizerFast, documents: list[str]) -> numpy.ndarray:
    """All documents as one stream of ids, `<s> … </s>` each; shape [tokens], uint16."""
    end = numpy.array([CONFIG["eos_token_id"]], dtype=numpy.uint16)
    pieces = []
    for start in range(0, len(documents), 512):  # in parts, so that the encodings' side tables are let go
        for encoding in tokenizer.backend_tokenizer.encode_batch_fast(documents[start : start + 512]):
            pieces += [numpy.array(encoding.ids, dtype=numpy.uint16), end]
    return numpy.concatenate(pieces)


def batches(stream: numpy.ndarray, batch: int, generator: numpy.random.Generator):
    """Endless [batch, CONTEXT + 1] slices: every epoch cuts the stream at another offset and shuffles the windows."""
    while True:
        start = generator.integers(CONTEXT)
        windows = numpy.lib.stride_tricks.sliding_window_view(stream[start:], CONTEXT + 1)[::CONTEXT]
        order = generator.permutation(len(windows))
        for i in range(0, len(order) - batch + 1, batch):
            yield torch.from_numpy(windows[order[i : i + batch]].astype(numpy.int64))


def cross_entropy(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood in nats; logits: [batch, length, vocabulary], targets: [batch, length]."""
    return functional.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


def rotary_tables(device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosine and sine of every position's angles; each [CONTEXT, 1, half a head's width]."""
    width = CONFIG["hidden_size"] // CONFIG["num_attention_heads"]
    frequency = ROPE_THETA ** (-torch.arange(0, width, 2, device=device) / width)
    angle = torch.arange(CONTEXT, device=device)[:, None, None] * frequency
    return angle.cos(), angle.sin()


def forward(model: MistralForCausalLM, tokens: torch.Tensor, tables, dtype: torch.dtype) -> torch.Tensor:
    """The logits of `model(tokens)` in plain operations that torch.compile fuses well; work is done in dtype.

    tokens: [batch, length]; tables: of rotary_tables; result: [batch, length, vocabulary].
    """
    heads, groups = CONFIG["num_attention_heads"], CONFIG["num_key_value_heads"]
    (batch, length), width = tokens.shape, CONFIG["hidden_size"] // heads

    def linear(x, *layers):
        return functional.linear(x, torch.cat([layer.weight for layer in layers]).to(dtype))

    def norm(x, layer):
        return functional.rms_norm(x, x.shape[-1:], layer.weight.to(dtype), CONFIG["rms_norm_eps"])

    cosine, sine = (table[:length] for table in tables)

    def rotate(x):  # [batch, length, heads, width]
        a, b = x.chunk(2, -1)
        return torch.cat([a * cosine - b * sine, b * cosine + a * sine], -1).to(dtype).transpose(1, 2)

    x = functional.embedding(tokens, model.model.embed_tokens.weight).to(dtype)
    for layer in model.model.layers:
        attention, mlp = layer.self_attn, layer.mlp
        mixed = linear(norm(x, layer.input_layernorm), attention.q_proj, attention.k_proj, attention.v_proj)
        query, key, value = mixed.view(batch, length, -1, width).split([heads, groups, groups], 2)
        mixed = functional.scaled_dot_product_attention(
            rotate(query), rotate(key), value.transpose(1, 2), is_causal=True, enable_gqa=True
        )
        x = x + linear(mixed.transpose(1, 2).flatten(2), attention.o_proj)
        gate, up = linear(norm(x, layer.post_attention_layernorm), mlp.gate_proj, mlp.up_proj).chunk(2, -1)
        x = x + linear(functional.silu(gate) * up, mlp.down_proj)
    return linear(norm(x, model.model.norm), model.lm_head)


@torch.no_grad()
def validate(loss_of, stream: numpy.ndarray, device: str, batch: int = 32) -> float:
    """Mean loss in nats a token over the stream, cut into windows that share one token."""
    usable = (len(stream) - 1) // CONTEXT
    windows = numpy.lib.stride_tricks.sliding_window_view(stream, CONTEXT + 1)[::CONTEXT][:usable]
    total = 0.0
    for i in range(0, usable, batch):
        part = torch.from_numpy(windows[i : i + batch].astype(numpy.int64)).to(device)
        total += loss_of(part).item() * len(part)
    return total / usable


def learning_rate(step: int, steps: int, warmup: int) -> float:
    """Share of the peak rate: linear warm-up, then down to zero as the rest of the steps to the power of 1.5."""
    if step < warmup:
        return (step + 1) / warmup
    return ((steps - step) / (steps - warmup)) ** 1.5


def make_model(seed: int, device: str) -> MistralForCausalLM:
    torch.manual_seed(seed)
    model = MistralForCausalLM(MistralConfig(**CONFIG, initializer_range=0.02))
    for name, weight in model.named_parameters():  # residual branches start small (GPT-2)
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            torch.nn.init.normal_(weight, std=0.02 / math.sqrt(2 * CONFIG["num_hidden_layers"]))
    return model.to(device)


class Muon(torch.optim.Optimizer):
    """Momentum whose update is made orthogonal (Jordan et al. 2024), scaled to AdamW's usual size (Liu et al. 2025).

    Matrices of one shape are stacked, so that a step is a few batched products instead of thousands of small ones.
    """

    def __init__(self, matrices: list[torch.Tensor], lr: torch.Tensor, weight_decay: float, momentum: float = 0.95):
        shapes = sorted({tuple(m.shape) for m in matrices})
        groups = [{"params": [m for m in matrices if tuple(m.shape) == shape]} for shape in shapes]
        super().__init__(groups, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @staticmethod
    def orthogonal(x: torch.Tensor) -> torch.Tensor:
        """About U Vᵀ of x = U S Vᵀ, by five Newton-Schulz steps; x: [matrices, rows, columns]."""
        x = x.bfloat16()
        wide = x.mT if x.shape[1] > x.shape[2] else x
        wide = wide / (wide.norm(dim=(1, 2), keepdim=True) + 1e-7)
        for _ in range(5):
            square = wide @ wide.mT
            wide = 3.4445 * wide + (-4.7750 * square + 2.0315 * square @ square) @ wide
        return wide.mT if x.shape[1] > x.shape[2] else wide

    @torch.no_grad()
    def step(self) -> None:
        for group in self.param_groups:
            matrices, momentum = group["params"], group["momentum"]
            gradient = torch.stack([m.grad for m in matrices])
            state = self.state[matrices[0]]
            if not state:
                state["average"] = torch.zeros_like(gradient)
            average = state["average"].lerp_(gradient, 1 - momentum)
            update = self.orthogonal(gradient.lerp(average, momentum)).float()  # Nesterov
            torch._foreach_mul_(matrices, 1 - group["lr"] * group["weight_decay"])
            update *= -group["lr"] * 0.2 * math.sqrt(max(gradient.shape[1:]))
            torch._foreach_add_(matrices, update.unbind())


def make_optimizers(model, arguments) -> list[torch.optim.Optimizer]:
    hidden = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." in n]
    tables = [p for n, p in model.named_parameters() if p.ndim == 2 and ".layers." not in n]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    groups = [{"params": tables, "weight_decay": 0.01}, {"params": vectors, "weight_decay": 0.0}]
    if arguments.optimizer == "adamw":
        groups.append({"params": hidden, "weight_decay": arguments.weight_decay})
    # Rates are tensors, and AdamW is capturable, for the CUDA graph.
    adamw_rate, muon_rate = torch.tensor([arguments.adamw_rate, arguments.muon_rate], device=model.device)
    adamw = torch.optim.AdamW(
        groups, lr=adamw_rate, betas=(0.9, 0.95), eps=1e-10, fused=True, capturable=model.device.type == "cuda"
    )
    if arguments.optimizer == "adamw":
        return [adamw]
    return [adamw, Muon(hidden, lr=muon_rate, weight_decay=arguments.weight_decay)]


def train(arguments, tokenizer, documents: list[str], held_out: list[str]) -> MistralForCausalLM:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    stream, validation = encode(tokenizer, documents), encode(tokenizer, held_out)
    nats_to_bits_per_byte = len(validation) / sum(len(d.encode()) for d in held_out) / math.log(2)
    steps = max(1, int(arguments.tokens / (arguments.batch * CONTEXT)))
    print(f"{len(stream):,} training tokens, {len(validation):,} validation tokens, {steps:,} steps", flush=True)

    if device == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream())  # a CUDA graph cannot be captured on the default stream
    model = make_model(arguments.seed, device)
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters", flush=True)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    tables = rotary_tables(device)
    optimizers = make_optimizers(model, arguments)
    peaks = [optimizer.defaults["lr"].item() for optimizer in optimizers]

    def loss_of(tokens):  # [batch, CONTEXT + 1]
        return cross_entropy(forward(model, tokens[:, :-1], tables, dtype), tokens[:, 1:])

    def update():
        loss = compiled(tokens)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    compiled, graph = loss_of, None
    if device == "cuda":
        compiled = torch.compile(loss_of, dynamic=False)
    tokens = torch.empty(arguments.batch, CONTEXT + 1, dtype=torch.int64, device=device)
    data = batches(stream, arguments.batch, numpy.random.default_rng(arguments.seed))
    curve, average, started = [], None, time.perf_counter()
    for step in range(steps):
        tokens.copy_(next(data).pin_memory() if device == "cuda" else next(data), non_blocking=True)
        for optimizer, peak in zip(optimizers, peaks, strict=True):
            optimizer.defaults["lr"].fill_(peak * learning_rate(step, steps, arguments.warmup))
        if device == "cuda" and step == 3:  # launched one by one, a step's thousand kernels wait for Python
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=torch.cuda.current_stream()):
                loss = update()
        if graph:
            graph.replay()
        else:
            loss = update()
        # A device tensor, so that the log waits for the GPU only where it prints.
        average = loss.clone() if average is None else torch.lerp(average, loss, 0.02)
        if step == 20:
            started = time.perf_counter()  # compilation is not speed
        if (step + 1) * 20 // steps > step * 20 // steps:
            nats, training_nats = validate(loss_of, validation, device), average.item()
            seconds, bits = time.perf_counter() - started, nats * nats_to_bits_per_byte
            seen = (step + 1) * arguments.batch * CONTEXT
            speed = max(0, step - 20) * arguments.batch * CONTEXT / seconds
            curve.append(
                {
                    "tokens": seen,
                    "seconds": round(seconds, 1),
                    "training_nats": round(training_nats, 4),
                    "validation_nats": round(nats, 4),
                    "validation_bits_per_byte": round(bits, 4),
                }
            )
            print(
                f"step {step + 1:6,}  {seen / 1e6:7.1f}M tokens  train {training_nats:.4f}"
                f"  validation {nats:.4f} nats = {bits:.4f} bits per byte  {speed:,.0f} tokens/s",
                flush=True,
            )
    settings = {"train": [p.name for p in arguments.train], "validation": arguments.validation.name}
    settings |= {k: v for k, v in vars(arguments).items() if k not in {"train", "validation", "evaluate", "output"}}
    record = {"arguments": settings, "training_tokens": len(stream), "torch": torch.__version__, "curve": curve}
    (arguments.output / "training-curve.json").write_text(json.dumps(record, indent=1) + "\n")
    return model


def detokenise_wikitext(text: str) -> str:
    """WikiText's spaced punctuation joined again, as prose is written."""
    text = re.sub(r" @([-,.])@ ", r"\1", text)
    text = re.sub(r" ([,.;:!?%)\]])", r"\1", text)
    text = re.sub(r"([(\[$£]) ", r"\1", text)
    text = re.sub(r" (n't|'(?:s|re|ve|ll|d|m)\b)", r"\1", text)
    text = re.sub(r'" ([^"\n]*?) "', r'"\1"', text)
    return re.sub(r"(?m)^ | $", "", text)


@torch.no_grad()
def bits_per_byte(model, tokenizer, documents: list[str], separate: bool) -> tuple[float, float]:
    """(perplexity a token, bits a byte) over windows of CONTEXT tokens; the NLL of the dropped tail is extrapolated."""
    ids = encode(tokenizer, documents) if separate else numpy.array(tokenizer(documents[0])["input_ids"])
    windows = ids[: len(ids) // CONTEXT * CONTEXT].astype(numpy.int64).reshape(-1, CONTEXT)
    nats = []
    for window in windows:
        tokens = torch.from_numpy(window[None]).to(model.device)
        nats.append(cross_entropy(model(input_ids=tokens, use_cache=False).logits[:, :-1], tokens[:, 1:]).item())
    mean = sum(nats) / len(nats)
    size = sum(len(d.encode()) for d in documents)
    return math.exp(mean), mean * len(ids) / size / math.log(2)


def evaluate(arguments) -> None:
    model = AutoModelForCausalLM.from_pretrained(arguments.output, dtype=torch.float32).eval()
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.output)
    for path in arguments.evaluate:
        if path.suffix == ".raw":  # WikiText: one text, as the published protocols join it
            raw = path.read_text(encoding="utf-8")
            variants = {"raw": ([raw], False), "detokenised": ([detokenise_wikitext(raw)], False)}
        else:
            variants = {"documents": (read_documents(path), True)}
        for name, (documents, separate) in variants.items():
            perplexity, bits = bits_per_byte(model, tokenizer, documents, separate)
            print(f"{path.name} ({name}): perplexity {perplexity:.3f}, {bits:.4f} bits per byte", flush=True)


def save_tokenizer(tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Saved under the class name that transformers 4 and 5 both know."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    kept = {"bos_token", "eos_token", "model_max_length"}
    settings = {key: value for key, value in json.loads(path.read_text()).items() if key in kept}
    settings |= {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False}
    path.write_text(json.dumps(settings, indent=2) + "\n")


def save_model(model: MistralForCausalLM, folder: Path) -> None:
    """bfloat16 safetensors; config.json with the keys of transformers 4 (torch_dtype, rope_theta) beside those of 5."""
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="11MB")
    path = folder / "config.json"
    settings = json.loads(path.read_text()) | {"torch_dtype": "bfloat16", "rope_theta": ROPE_THETA}
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    for path in folder.glob("*.safetensors"):
        path.chmod(0o644)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=Path, nargs="+", help="training texts")
    parser.add_argument("--validation", type=Path, help="held-out text")
    parser.add_argument("--evaluate", type=Path, nargs="+", help="report on these texts instead of training")
    parser.add_argument("--output", type=Path, required=True, help="folder of the model")
    parser.add_argument("--tokens", type=float, default=1.6e9, help="training tokens, all epochs together")
    parser.add_argument("--batch", type=int, default=32, help=f"windows of {CONTEXT} tokens a step")
    parser.add_argument("--optimizer", choices=["muon", "adamw"], default="muon", help="for the hidden matrices")
    parser.add_argument("--muon-rate", type=float, default=5e-3, help="peak, of the hidden matrices")
    parser.add_argument("--adamw-rate", type=float, default=8e-3, help="peak, of everything else")
    parser.add_argument("--weight-decay", type=float, default=0.4, help="of the hidden matrices")
    parser.add_argument("--warmup", type=int, default=200, help="steps")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    if arguments.evaluate:
        return evaluate(arguments)
    if not arguments.train or not arguments.validation:
        parser.error("--train and --validation are required (or --evaluate)")
    arguments.output.mkdir(parents=True, exist_ok=True)
    documents = [d for path in arguments.train for d in read_documents(path)]
    if (arguments.output / "tokenizer.json").exists():
        tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.output)
    else:
        tokenizer = train_tokenizer(documents)
    save_tokenizer(tokenizer, arguments.output)
    attention = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]  # fastest first
    with sdpa_kernel(attention, set_priority=True):
        model = train(arguments, tokenizer, documents, read_documents(arguments.validation))
    save_model(model, arguments.output)


if __name__ == "__main__":
    main()
