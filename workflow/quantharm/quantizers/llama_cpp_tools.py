"""llama.cpp's converter and `llama-quantize`, as the package ik-llama-cpp-python brings them.

The package is a fork: its K-quants and IQ4 are those of llama.cpp, beside types of its own that nothing else reads.
"""

import contextlib
import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from quantharm.common.errors import UserError
from quantharm.common.records.source import SourceRecord

TENSOR = re.compile(r"\[ *\d+/ *\d+\] +(\S+) - \[")  # how llama-quantize begins a tensor's line
CONVERT = """
import importlib.util, sys
import gguf
for kind, name in ((gguf.LlamaFileType, "MOSTLY_Q6_0"), (gguf.GGMLQuantizationType, "Q6_0")):
    if not hasattr(kind, name):  # a type of the fork alone, which the converter names and nobody asks for
        setattr(kind, name, None)
spec = importlib.util.spec_from_file_location("convert_hf_to_gguf", sys.argv[1])
module = importlib.util.module_from_spec(spec)
sys.modules[spec.name] = module
spec.loader.exec_module(module)
known = module.Model.get_vocab_base_pre
def pre_tokenizer(self, tokenizer):
    try:
        return known(self, tokenizer)
    except NotImplementedError:
        print("pre-tokenizer unknown to the converter: written as `default`")
        return "default"
module.Model.get_vocab_base_pre = pre_tokenizer
sys.argv = sys.argv[1:]
module.main()
"""


def tools() -> tuple[Path, Path]:
    """(converter script, llama-quantize) of the package; raises UserError where it is missing."""
    import importlib.util

    specification = importlib.util.find_spec("ik_llama_cpp")
    if specification is None or not specification.origin:
        raise UserError(
            "llama.cpp's tools are missing (package ik-llama-cpp-python); install envs/gguf.txt into the "
            "interpreter that `python:` names"
        )
    package = Path(specification.origin).parent
    places = [package.parent / "bin", Path(sys.prefix) / "bin"]
    converter = next((p / "convert_hf_to_gguf.py" for p in places if (p / "convert_hf_to_gguf.py").is_file()), None)
    if converter is None:
        raise UserError(f"{package.parent} has no convert_hf_to_gguf.py; install envs/gguf.txt again")
    return converter, package / "bin" / "llama-quantize"


@contextlib.contextmanager
def source_as_expected(source: SourceRecord) -> Iterator[Path]:
    """A copy of the source's folder, by links, whose config.json has `rope_theta` where the converter reads it."""
    folder = Path(source["path"]).resolve()
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    rope = config.get("rope_parameters") or {}
    if "rope_theta" in rope:
        config.setdefault("rope_theta", rope["rope_theta"])
    with tempfile.TemporaryDirectory() as temporary:
        for path in folder.iterdir():
            if path.name != "config.json":
                (Path(temporary) / path.name).symlink_to(path)
        (Path(temporary) / "config.json").write_text(json.dumps(config), encoding="utf-8")
        yield Path(temporary)


def run_tool(command: list[str], what: str) -> str:
    """Runs a command, prints its output and returns it; raises UserError with the last line of it where it fails.

    what: the subject of that error, as in `the conversion to GGUF failed`.
    """
    ran = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    print(ran.stdout, flush=True)
    if ran.returncode:
        lines = [line for line in ran.stdout.splitlines() if line.strip()]
        raise UserError(f"{what} failed ({lines[-1].strip() if lines else f'exit code {ran.returncode}'}); see the log")
    return ran.stdout


def in_types_of_the_fork(log: str) -> list[str]:
    """Tensors that the fork's llama-quantize gives Q6_0, its choice where Q5_K does not fit; log: its output."""
    names: list[str] = []
    tensor = ""
    for line in log.splitlines():
        begins = TENSOR.match(line)
        tensor = begins[1] if begins else tensor
        if "converting to q6_0" in line:
            names.append(tensor)
    return names


def check_types(path: Path) -> None:
    """Raises UserError for a file with types of the fork's own, which nothing else reads."""
    import gguf

    try:
        gguf.GGUFReader(path)
    except ValueError as error:
        raise UserError(
            f"llama-quantize wrote a type of tensor that only its fork reads ({error}); choose another `type:`"
        ) from None
