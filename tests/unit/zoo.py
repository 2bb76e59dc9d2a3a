"""A zoo: a tiny random model of each architecture, made by transformers from a small configuration.

    PYTHONPATH=workflow:tests python tests/unit/zoo.py [NAME …] [--methods nf4 awq] [--page FILE.md]

runs every stage on every model with every method, in this process, and prints what ran, what was refused, and why.
"""

import contextlib
import io
import json
import time
import traceback
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from stage_chain import Chain

from quantharm.models import loading

DATA = Path(__file__).resolve().parents[2] / "data"
METHODS = ("baseline", "int8", "nf4", "awq")
CELL_STAGES = ("quantize", "generation", "logits", "perplexity", "divergence", "integrity", "checks")
ALL = "all"  # methods at once
RAN = "ran"
REFUSED = "refused: "
TABLE_STARTS = "| architecture | "  # of the page, whose words stand before it

SHAPE = {  # of a decoder; a width of 64 is one block of NF4 and two groups of AWQ
    "vocab_size": 384,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": None,
    "initializer_range": 0.2,  # so that layers matter and logits are not all alike
}
ABSENT = object()  # a key of SHAPE that a configuration class does not take
EXPERTS = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}


@dataclass(frozen=True)
class Animal:
    """One architecture: its configuration class, what differs from SHAPE, and the class that is saved."""

    configuration: str
    settings: dict[str, Any] = field(default_factory=dict)
    model: str = "AutoModelForCausalLM"
    refused: dict[str, str] = field(default_factory=dict)  # method → words of the sentence, on a CPU
    failed: tuple[str, ...] = ()  # checks of NF4


VISION = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
LATENT = {  # multi-head latent attention
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "v_head_dim": 16,
    "head_dim": 16,
    "num_key_value_heads": 4,
}

MIXTURE = dict.fromkeys(("int8", "nf4", "awq"), "sparse mixture")
NOT_AWQ = {"awq": "autoawq"}
FALCON = dict.fromkeys(("int8", "nf4"), "leaves FalconLinear alone")
CPU_KERNEL = (
    "cannot be computed on cpu"  # bitsandbytes' kernel for AVX512_BF16; without it another one takes all shapes
)

ZOO: dict[str, Animal] = {
    "Llama": Animal("LlamaConfig"),
    "Mistral": Animal("MistralConfig", {"sliding_window": 32}),
    "Qwen2": Animal("Qwen2Config", {"tie_word_embeddings": True}),
    "Qwen3": Animal("Qwen3Config"),
    "Qwen3-MoE": Animal("Qwen3MoeConfig", EXPERTS, refused=MIXTURE),
    "Qwen3-Next": Animal(
        "Qwen3NextConfig",
        EXPERTS
        | {
            "shared_expert_intermediate_size": 64,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "layer_types": ["linear_attention", "full_attention"],
        },
        refused=MIXTURE,
    ),
    "Mixtral": Animal("MixtralConfig", EXPERTS, refused=MIXTURE),
    "Gemma": Animal("GemmaConfig"),
    "Gemma 2": Animal(
        "Gemma2Config", {"sliding_window": 32, "final_logit_softcapping": 5.0, "query_pre_attn_scalar": 16}
    ),
    "Gemma 3": Animal(
        "Gemma3TextConfig",
        {"sliding_window": 32, "query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"]},
        refused=NOT_AWQ,
    ),
    "Gemma 3 multimodal": Animal(
        "Gemma3Config",
        {
            "text_config": SHAPE
            | {
                "sliding_window": 32,
                "query_pre_attn_scalar": 16,
                "layer_types": ["sliding_attention", "full_attention"],
            },
            "vision_config": VISION,
            "mm_tokens_per_image": 4,
            "image_token_index": 300,
            "boi_token_index": 301,
            "eoi_token_index": 302,
            "eos_token_id": 1,
        },
        "AutoModelForImageTextToText",
        refused=NOT_AWQ,
    ),
    "Phi-3": Animal("Phi3Config", {"sliding_window": 64}),
    "GPT-2": Animal("GPT2Config", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256}, refused=NOT_AWQ),
    "GPT-NeoX": Animal("GPTNeoXConfig"),
    "GPT-J": Animal(
        "GPTJConfig", {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 256, "rotary_dim": 8, "n_inner": 128}
    ),
    "OPT": Animal("OPTConfig", {"ffn_dim": 128, "word_embed_proj_dim": 64}),
    "OPT, projected": Animal(
        "OPTConfig",
        {"ffn_dim": 128, "word_embed_proj_dim": 32, "do_layer_norm_before": False},
        refused={"nf4": CPU_KERNEL},
        failed=("kernel",),  # where it is not refused: bitsandbytes dequantizes rows of 32 weights wrongly on a CPU
    ),
    "BLOOM": Animal("BloomConfig", {"n_layer": 2, "n_head": 4}),
    "Falcon": Animal(
        "FalconConfig",
        {"new_decoder_architecture": True, "num_kv_heads": 2, "head_dim": ABSENT},
        refused=FALCON,
    ),
    "Falcon-H1": Animal(
        "FalconH1Config",
        {"mamba_d_ssm": 64, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1, "mamba_d_state": 16},
        refused=NOT_AWQ | {"nf4": CPU_KERNEL},
    ),
    "Mamba": Animal(
        "MambaConfig",
        {"max_position_embeddings": ABSENT, "state_size": 8, "time_step_rank": 4},
        refused=NOT_AWQ | {"int8": "cannot be computed", "nf4": CPU_KERNEL},
    ),
    "Mamba 2": Animal(
        "Mamba2Config",
        {
            "max_position_embeddings": ABSENT,
            "state_size": 8,
            "num_heads": 8,
            "head_dim": 16,
            "n_groups": 1,
            "chunk_size": 16,
        },
        refused=NOT_AWQ | {"nf4": CPU_KERNEL},
    ),
    "LFM2": Animal("Lfm2Config", {"layer_types": ["conv", "full_attention"], "block_multiple_of": 64}, refused=NOT_AWQ),
    "StableLM": Animal("StableLmConfig"),
    "Starcoder 2": Animal("Starcoder2Config", {"sliding_window": None}),
    "Cohere": Animal("CohereConfig", {"logit_scale": 0.0625}),
    "Granite": Animal("GraniteConfig", {"logits_scaling": 8.0, "embedding_multiplier": 3.0}, refused=NOT_AWQ),
    "OLMo 2": Animal("Olmo2Config", refused=NOT_AWQ),
    "GLM-4": Animal("Glm4Config", refused=NOT_AWQ),
    "SmolLM 3": Animal("SmolLM3Config", refused=NOT_AWQ),
    "DeepSeek-V3": Animal(
        "DeepseekV3Config",
        LATENT
        | {
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 64,
            "n_group": 1,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        refused=MIXTURE,
    ),
    "gpt-oss": Animal("GptOssConfig", EXPERTS | {"sliding_window": 32, "intermediate_size": 64}, refused=MIXTURE),
    "RWKV": Animal(
        "RwkvConfig", {"max_position_embeddings": ABSENT, "context_length": 256}, refused=NOT_AWQ, failed=("kernel",)
    ),
    "T5": Animal(
        "T5Config", {"d_model": 64, "d_kv": 16, "d_ff": 128, "num_layers": 2, "num_heads": 4}, "AutoModelForSeq2SeqLM"
    ),
    "BART": Animal(
        "BartConfig",
        {"d_model": 64, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 128, "decoder_ffn_dim": 128}
        | {"encoder_attention_heads": 4, "decoder_attention_heads": 4, "pad_token_id": 2, "decoder_start_token_id": 1},
        "AutoModelForSeq2SeqLM",
    ),
    "BERT": Animal("BertConfig", {"pad_token_id": 2}, "AutoModelForMaskedLM"),
    "ViT": Animal("ViTConfig", VISION, "AutoModelForImageClassification"),
}


NOT_CAUSAL = ("T5", "BART", "BERT", "ViT")


def configuration(name: str):
    """The configuration of an architecture: SHAPE's keys, but for composite models, and its own."""
    animal = ZOO[name]
    shape = {} if "text_config" in animal.settings or animal.settings is VISION else SHAPE
    settings = {key: value for key, value in (shape | animal.settings).items() if value is not ABSENT}
    return getattr(transformers, animal.configuration)(**settings)


def build(name: str, seed: int = 0):
    """A random model in float32."""
    torch.manual_seed(seed)
    return getattr(transformers, ZOO[name].model).from_config(configuration(name)).eval()


class Run:
    """One model's stages, in the order of the workflow, and how each ended."""

    def __init__(self, name: str, folder: Path, tokenizer, monkeypatch):
        self.name, self.folder, self.monkeypatch = name, folder, monkeypatch
        self.outcomes: dict[tuple[str, str], str] = {}  # (stage, method) → "ran", "refused: …" or "FAILED: …"
        self.seconds: dict[tuple[str, str], float] = {}
        build(name).save_pretrained(folder / "model")
        tokenizer.save_pretrained(folder / "model")
        (folder / "run").mkdir()
        self.chain = Chain(folder / "run", {}, monkeypatch)
        self.chain.text.write_text((DATA / "evaluation.txt").read_text(encoding="utf-8")[:600], encoding="utf-8")
        self.chain.source.unlink()

    def stage(self, stage: str, method: str, *words: str, **changed) -> bool:
        """Whether a stage ran to its end."""
        begin = time.process_time()
        try:
            with contextlib.redirect_stdout(io.StringIO()):
                if words:
                    self.chain.run(stage, list(map(str, words)))
                else:
                    self.chain.call(stage, method, **changed)
            outcome = self.verdict(stage, method)
        except SystemExit as ended:
            outcome = f"{REFUSED}{str(ended.code).removeprefix('error: ')}"
        except Exception as error:
            traceback.print_exc()
            outcome = f"FAILED: {type(error).__name__}: {error}"
        self.outcomes[stage, method] = outcome
        self.seconds[stage, method] = time.process_time() - begin
        return outcome == RAN

    def verdict(self, stage: str, method: str) -> str:
        """What the checks say; that no text is predicted well is in the nature of random weights."""
        failed = self.failed_checks(method) if stage == "checks" else set()
        return f"ran, but failed {', '.join(sorted(failed))}" if failed else RAN

    def failed_checks(self, method: str) -> set[str]:
        path = self.chain / method / "checks.json"
        return set(self.chain.read(f"{method}/checks.json")["failed"]) if path.exists() else set()

    def fetch(self) -> bool:
        return self.stage(
            "fetch", ALL, "--model", "zoo", "--source", self.folder / "model", "--output", self.chain.source
        )

    def cell(self, method: str, stages: tuple[str, ...] = CELL_STAGES) -> bool:
        """Whether the stages of a cell ran, one after another, until one did not."""
        for stage in stages:
            if stage == "logits" and method != "baseline":
                continue
            extra = {"calibration": DATA / "calibration.txt"} if (stage, method) == ("quantize", "awq") else {}
            if not self.stage(stage, method, **extra):
                return False
        return True

    def summary_and_report(self, methods: list[str]) -> None:
        results, cells = self.chain.folder, [self.chain / method for method in methods]
        tables = [f"--{kind}={results / f'summary.{kind}'}" for kind in ("json", "parquet", "csv")]
        if self.stage("summary", ALL, "--cells", *cells, *tables):
            page = {
                "html": "report.html",
                "markdown": "EVALUATION_SUMMARY.md",
                "figures": "figures",
                "tables": "tables",
            }
            self.stage("report", ALL, "--model", results, *(f"--{key}={results / path}" for key, path in page.items()))


def visit(name: str, folder: Path, tokenizer, monkeypatch, methods=METHODS) -> dict[tuple[str, str], str]:
    """How every stage ended on one architecture, the baseline first."""
    run = Run(name, folder, tokenizer, monkeypatch)
    if run.fetch():
        finished = [method for method in methods if run.cell(method)]
        if "baseline" in finished:
            run.summary_and_report(finished)
    return run.outcomes


def main() -> None:
    import argparse
    import tempfile

    import pytest
    from conftest import byte_level_tokenizer

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(ZOO))
    parser.add_argument("--methods", nargs="+", default=list(METHODS))
    parser.add_argument("--page", type=Path, help="Markdown file, whose table is replaced")
    arguments = parser.parse_args()
    loading.quiet()
    methods = arguments.methods
    words: dict[str, list[str]] = {}
    for name in arguments.names:
        with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as monkeypatch:
            outcomes = visit(name, Path(folder), byte_level_tokenizer(), monkeypatch, arguments.methods)
            kl = {
                path.parent.name: f", KL {json.loads(path.read_text())['kl_nats']['mean']:.2g}"
                for path in Path(folder).glob("run/*/divergence.json")
            }
            words[name] = [cell_words(outcomes, method).replace(folder, "") + kl.get(method, "") for method in methods]
        for method, text in zip(methods, words[name], strict=True):
            print(f"{name:20}{method:10}{text}", flush=True)
        failed = [f"{stage}: {o}" for (stage, method), o in outcomes.items() if method == ALL and o != RAN]
        print(*(f"{name:20}{'':10}{text}".replace(folder, "") for text in failed), sep="\n", end="\n" * bool(failed))
    if arguments.page:
        page = arguments.page.read_text(encoding="utf-8") if arguments.page.exists() else ""
        arguments.page.write_text(page.split(TABLE_STARTS)[0] + table(words, methods), encoding="utf-8")


def table(words: dict[str, list[str]], methods: list[str]) -> str:
    """A row an architecture; refusals are numbered, and their sentences stand below, each once."""
    refusals = {text: "" for row in words.values() for text in row if REFUSED in text}
    refusals = {text: f"refused [{i}]" for i, text in enumerate(refusals, start=1)}
    lines = [f"{TABLE_STARTS}{' | '.join(methods)} |", f"|---|{'---|' * len(methods)}"]
    lines += [f"| {name} | {' | '.join(refusals.get(text, text) for text in row)} |" for name, row in words.items()]
    sentences = [f"{i}. {text.replace(REFUSED, '')}" for i, text in enumerate(refusals, start=1)]
    return "\n".join([*lines, "", "The sentences, after the stage that says them:", "", *sentences]) + "\n"


def cell_words(outcomes: dict[tuple[str, str], str], method: str) -> str:
    """`ran`, or where a cell (or its model's fetch) ended and how."""
    for (stage, of), outcome in outcomes.items():
        if outcome != RAN and (of == method or (stage, of) == ("fetch", ALL)):
            return f"{stage}: {outcome}"
    return RAN


if __name__ == "__main__":
    main()
