"""Models and texts that the unit tests share: the reference model once a session, tiny random models on the fly."""

import gc
import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # spinning threads make a small model 50 times slower
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from safetensors.torch import load_file

from quantharm import fetch, quantize
from quantharm.models import loading, safety
from quantharm.quantizers import quantized_layers
from quantharm.speed import cuda_graph, prompt_reader, static_decoder
from quantharm.speed.fixed_cache import why_no_fixed_cache

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = ROOT / "data" / "reference-model"

torch.set_grad_enabled(False)
loading.quiet()

TINY = {  # kind → (configuration class, settings)
    "llama": (transformers.LlamaConfig, {}),
    "llama_tied": (transformers.LlamaConfig, {"tie_word_embeddings": True}),
    "mistral": (transformers.MistralConfig, {"sliding_window": None}),
    "qwen2": (transformers.Qwen2Config, {}),
    "gemma2": (transformers.Gemma2Config, {"final_logit_softcapping": 5.0, "head_dim": 16}),
    "cohere": (transformers.CohereConfig, {"logit_scale": 0.0625}),
    "granite": (transformers.GraniteConfig, {"logits_scaling": 8.0, "embedding_multiplier": 3.0}),
    "gpt2": (transformers.GPT2Config, {"tie_word_embeddings": True}),
    "gpt2_untied": (transformers.GPT2Config, {"tie_word_embeddings": False}),
}


def pytest_collection_finish() -> None:
    """What was imported is never garbage; else each collection, of which stages ask for some, takes half a second."""
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # libraries look for leaks at the end


@pytest.fixture
def set_num_threads():
    """torch.set_num_threads, for the time of a test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def root() -> Path:
    return ROOT


@pytest.fixture
def steps_instead_of_graphs(monkeypatch):
    """`captured` on a CPU: nothing is recorded, so that what would be replayed is computed."""
    monkeypatch.setattr(cuda_graph, "why_not_captured", why_no_fixed_cache)
    for module in (static_decoder, prompt_reader):
        monkeypatch.setattr(module, "record_graph", lambda *_: None)


def make_tiny(kind: str, dtype=torch.float32, seed: int = 0, **settings):
    """A random model with peaked logits (the head is scaled up), so that differences show."""
    configuration, own = TINY[kind]
    shape = {"vocab_size": 384, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None}
    if kind.startswith("gpt2"):
        shape |= {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 128}
    else:
        shape |= {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 128,
        }
    torch.manual_seed(seed)
    model = transformers.AutoModelForCausalLM.from_config(configuration(**(shape | own | settings)))
    model.get_output_embeddings().weight.mul_(20.0)
    return model.to(dtype).eval()


@pytest.fixture(scope="session")
def tiny():
    """tiny(kind, dtype, seed, **settings) builds a model of two layers, width 64."""
    return make_tiny


def byte_level_tokenizer(bos: bool = False, template: str | None = None):
    """One token a byte; ids 0 and 1 are <s> and </s>."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {"<s>": 0, "</s>": 1} | {letter: i for i, letter in enumerate(letters, 2)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    if bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
        )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>")
    fast.chat_template = template
    return fast


@pytest.fixture(scope="session")
def byte_tokenizer():
    return byte_level_tokenizer


@pytest.fixture(scope="session")
def save_checkpoint(byte_tokenizer):
    """save_checkpoint(model, folder): as a user would have it on disk, with a tokenizer; returns its source record."""

    def save(model, folder: Path) -> dict:
        model.save_pretrained(folder)
        byte_tokenizer().save_pretrained(folder)
        return fetch.describe("tiny", str(folder), Path(folder), None, False, False)

    return save


@pytest.fixture(scope="session")
def make_cell(tmp_path_factory):
    """make_cell(source, quantizer, settings, dtype): quantized, saved, loaded from disk, as the quantize stage does."""

    def make(source: dict, quantizer: str, settings: dict | None = None, dtype: str = "bfloat16", calibration=None):
        folder = tmp_path_factory.mktemp(quantizer)
        arguments = SimpleNamespace(
            quantizer=quantizer, checkpoint=folder / "checkpoint", dtype=dtype, gpus=1, calibration=calibration
        )
        made = quantize.make_checkpoint(arguments, source, settings or {}, "cpu")
        checkpoint = Path(made.pop("checkpoint", arguments.checkpoint))
        record = {
            "model": source["model"],
            "method": quantizer,
            "quantizer": quantizer,
            "settings": settings or {},
            "dtype": dtype,
            "gpus": 1,
            "source": source,
            "checkpoint": str(checkpoint),
            "weight_files": safety.hash_weights(checkpoint, source["allow_pickle"]),
        } | made
        record |= quantize.inspect_checkpoint(record, "cpu")
        model = loading.load_cell(record, "cpu")
        matrices = quantized_layers.quantized_matrices(model, checkpoint, quantizer)
        return SimpleNamespace(record=record, model=model, matrices=matrices, checkpoint=checkpoint)

    return make


@pytest.fixture(scope="session")
def reference_source() -> dict:
    return fetch.describe("reference", str(REFERENCE), REFERENCE, None, False, False)


@pytest.fixture(scope="session")
def reference_tokenizer(reference_source):
    return loading.load_tokenizer(reference_source)


@pytest.fixture(scope="session")
def reference_model(reference_source):
    """The reference model in float32; do not change it."""
    return loading.load_checkpoint(REFERENCE, reference_source, "float32", "cpu", 1)


@pytest.fixture(scope="session")
def reference_weights() -> dict[str, torch.Tensor]:
    files = sorted(REFERENCE.glob("*.safetensors"))
    return {name: tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="session")
def baseline_cell(make_cell, reference_source):
    return make_cell(reference_source, "unquantized")


@pytest.fixture(scope="session")
def nf4_cell(make_cell, reference_source):
    return make_cell(reference_source, "bitsandbytes_4bit", {"quant_type": "nf4", "double_quantization": True})


@pytest.fixture(scope="session")
def int8_cell(make_cell, reference_source):
    return make_cell(reference_source, "bitsandbytes_int8", {"threshold": 6.0})


@pytest.fixture(scope="session")
def evaluation_text(root) -> str:
    return (root / "data" / "evaluation.txt").read_text(encoding="utf-8")


@pytest.fixture(scope="session")
def suite(root) -> list[dict]:
    lines = (root / "data" / "prompts.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture
def copy_of_reference(tmp_path):
    """A copy of the reference model's folder, to be damaged."""
    folder = tmp_path / "model"
    shutil.copytree(REFERENCE, folder)
    return folder


AWQ_GROUP = 64
AWQ_ORDER = [0, 2, 4, 6, 1, 3, 5, 7]  # output channel of each nibble of an int32, from the low bits up


def pack_gemm(codes: torch.Tensor) -> torch.Tensor:
    """[n, outputs] integers 0…15 → [n, outputs / 8] int32, in AutoAWQ's GEMM layout."""
    packed = torch.zeros(codes.shape[0], codes.shape[1] // 8, dtype=torch.int64)
    for nibble, channel in enumerate(AWQ_ORDER):
        packed |= codes[:, channel::8].long() << (4 * nibble)
    return torch.where(packed >= 2**31, packed - 2**32, packed).to(torch.int32)


@pytest.fixture(scope="session")
def awq_checkpoint(tmp_path_factory, byte_tokenizer):
    """A checkpoint packed by hand: (folder, source record, {module: [rows, columns] float32 that it stands for})."""
    from safetensors.torch import save_file

    model = make_tiny("llama", torch.float16, hidden_size=128, intermediate_size=256, max_position_embeddings=256)
    folder = tmp_path_factory.mktemp("awq")
    model.config.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    generator = torch.Generator().manual_seed(0)
    tensors = {name: t.clone().contiguous() for name, t in model.state_dict().items()}
    known = {}
    for name, module in model.named_modules():
        if type(module) is torch.nn.Linear and name != "lm_head":
            rows, columns = module.weight.shape
            groups = columns // AWQ_GROUP
            codes = torch.randint(0, 16, (columns, rows), generator=generator)
            zeros = torch.randint(4, 12, (groups, rows), generator=generator)
            scales = (torch.rand(groups, rows, generator=generator) * 0.02 + 0.005).half()
            values = torch.empty(rows, columns)
            for column in range(columns):  # by hand, one input channel at a time
                group = column // AWQ_GROUP
                values[:, column] = (codes[column] - zeros[group]).float() * scales[group].float()
            known[name] = values
            del tensors[f"{name}.weight"]
            tensors |= {
                f"{name}.qweight": pack_gemm(codes),
                f"{name}.qzeros": pack_gemm(zeros),
                f"{name}.scales": scales,
            }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {
        "quant_method": "awq",
        "bits": 4,
        "group_size": AWQ_GROUP,
        "zero_point": True,
        "version": "gemm",
        "modules_to_not_convert": None,
    }
    (folder / "config.json").write_text(json.dumps(settings))
    return folder, fetch.describe("tiny-awq", str(folder), folder, None, False, False), known


@pytest.fixture(scope="session")
def awq_cell(make_cell, awq_checkpoint):
    """A third party's AWQ checkpoint, as a method of its model."""
    _, source, _ = awq_checkpoint
    return make_cell(source, "pretrained", {"resolved": source, "backend": None}, "float16")
