"""A checkpoint of random weights in the shape of a published model, for measuring sizes, times and memory without it.

Matrices are drawn from a normal distribution with standard deviation 0.02 (the `initializer_range` of such models), so
logits are finite and of the usual scale; norms are ones, biases zeros. They are made and written layer by layer: a
shape may be larger than the device or the host. The tokenizer is the built-in one, whose ids are the first of the
vocabulary. Its quality figures mean nothing and are marked. Writes the checkpoint folder,
with synthetic.json in it.
"""

import concurrent.futures
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from quantharm.common.errors import UserError, first_line
from quantharm.common.files import read_json, replacing_folder, write_json
from quantharm.common.provenance import device_name
from quantharm.common.stage import add_device, begin_model_stage, run_stage, stage_parser
from quantharm.common.versions import versions
from quantharm.config.architectures import read_architecture
from quantharm.models.devices import choose_device, torch_dtype
from quantharm.models.loading import SYNTHETIC_MARK, quiet

if TYPE_CHECKING:
    from torch import Tensor

    from quantharm.common.checkpoint_files import CheckpointConfig

INITIALIZER_RANGE = 0.02
SHARD_BYTES = 2 * 10**9  # of host memory; two shards at a time
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")


def model_configuration(shape: "CheckpointConfig", tokenizer: Path):
    """transformers' configuration of a shape, with the special tokens of the tokenizer."""
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    settings = {k: v for k, v in shape.items() if k not in ("quantization_config", "auto_map", "transformers_version")}
    kind = settings.pop("model_type")
    if kind not in CONFIG_MAPPING:
        raise UserError(f"transformers knows no architecture `{kind}`; name another configuration")
    own = read_json(tokenizer / "config.json")
    special = {key: own.get(key) for key in ("bos_token_id", "eos_token_id", "pad_token_id")}
    configuration = AutoConfig.for_model(kind, **settings | special | {"initializer_range": INITIALIZER_RANGE})
    if configuration.vocab_size < own["vocab_size"]:
        raise UserError(
            f"the shape's vocabulary of {configuration.vocab_size} is smaller than the built-in tokenizer's "
            f"{own['vocab_size']}; name a configuration with a larger one"
        )
    return configuration


def empty_model(configuration, dtype: str):
    """A causal language model of that configuration on the meta device, which takes no memory."""
    import torch
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(configuration, dtype=torch_dtype(dtype))
    except ValueError as error:
        raise UserError(
            f"no language model can be made of this configuration ({first_line(error)}); name another one"
        ) from None


def random_tensors(model, device: str, seed: int) -> "Iterator[tuple[str, Tensor]]":
    """(name, tensor on the device) of each of the model's weights, layer by layer, initialised as transformers does.

    A tied matrix comes once. Same seed, kind of device and shape: same numbers.
    """
    import torch

    torch.manual_seed(seed)
    named = dict(model.named_parameters())  # a tied one by its first name only
    for prefix, module in model.named_modules():
        own = {name: f"{prefix}.{name}".lstrip(".") for name, _ in module.named_parameters(recurse=False)}
        if not any(full in named for full in own.values()):
            continue
        module.to_empty(device=device, recurse=False)
        model._init_weights(module)
        for name, full in own.items():
            if full in named:
                yield full, getattr(module, name).detach()
        module.to_empty(device="meta", recurse=False)


def shards_of(tensors: "Iterator[tuple[str, Tensor]]") -> "Iterator[dict[str, Tensor]]":
    """{name: tensor in host memory}, in order, as many at a time as fit SHARD_BYTES."""
    shard: dict[str, Tensor] = {}
    filled = 0
    for name, tensor in tensors:
        if shard and filled + tensor.nbytes > SHARD_BYTES:
            yield shard
            shard, filled = {}, 0
        shard[name] = tensor.cpu()
        filled += tensor.nbytes
    yield shard


def write_shard(shard: "dict[str, Tensor]", path: Path) -> None:
    """Writes one safetensors file."""
    from safetensors.torch import save_file

    save_file(shard, path, metadata={"format": "pt"})


def write_checkpoint(model, tensors: "Iterator[tuple[str, Tensor]]", folder: Path) -> int:
    """Writes the tensors in shards of SHARD_BYTES, their index and the configuration; returns the bytes of weights.

    A thread writes a shard while the next one is made.
    """
    index: dict[str, str] = {}  # {tensor: file}
    size = 0
    with concurrent.futures.ThreadPoolExecutor(1) as writer:
        written = writer.submit(lambda: None)
        for number, shard in enumerate(shards_of(tensors), 1):
            path = folder / f"model-{number:05d}.safetensors"
            index |= dict.fromkeys(shard, path.name)
            size += sum(tensor.nbytes for tensor in shard.values())
            written.result()
            written = writer.submit(write_shard, shard, path)
        written.result()
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": index})
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    model.generation_config.save_pretrained(folder)
    return size


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("--architecture", required=True, help="name of a known shape, or a config.json")
    parser.add_argument("--seed", type=int, default=0, help="of the random weights")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    parser.add_argument("--tokenizer", type=Path, required=True, help="folder of the tokenizer, with its config.json")
    add_device(parser)
    parser.add_argument("--output", type=Path, required=True, help="checkpoint folder to write")
    arguments = parser.parse_args()
    timing = begin_model_stage()
    quiet()
    device = choose_device(arguments.device, 1)
    configuration = model_configuration(read_architecture(arguments.architecture), arguments.tokenizer)
    model = empty_model(configuration, arguments.dtype)
    parameters = model.num_parameters()
    with replacing_folder(arguments.output) as folder:
        with timing.part("model"):
            size = write_checkpoint(model, random_tensors(model, device, arguments.seed), folder)
            for name in TOKENIZER_FILES:
                shutil.copyfile(arguments.tokenizer / name, folder / name)
        mark = {
            "architecture": arguments.architecture,
            "seed": arguments.seed,
            "initializer_range": INITIALIZER_RANGE,
            "parameters": parameters,
            "device": device_name(device),  # another device draws other numbers from the same seed
            "versions": versions(),
            "timing": timing.record(),
        }
        write_json(folder / SYNTHETIC_MARK, mark)
        for path in folder.iterdir():
            path.chmod(0o644)
    print(
        f"{arguments.architecture}: {parameters:,} random weights, {size / 1e9:.3f} GB, made and written at "
        f"{size / 1e9 / timing.seconds['model']:.2f} GB a second"
    )


if __name__ == "__main__":
    run_stage(main)
