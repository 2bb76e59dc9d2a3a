"""Sampled answers of a checkpoint, as JSON lines: the original's side of the two-sample test on outputs.

    python -m quantharm.forensics.sample_answers FOLDER --output original.jsonl [--answers 20] [--new-tokens 32]

Every prompt of the suite gets --answers answers at one temperature, without another sampler or a penalty. Sample the
model behind the interface with the same prompts and settings (temperature, length; top-p 1, no penalties), write its
answers as {"prompt_id": …, "text": …} lines, and compare the two files with quantharm.forensics.model_equality.
"""

import json
from pathlib import Path

from quantharm.common import chat
from quantharm.common.checkpoint_files import read_checkpoint_config
from quantharm.common.errors import UserError
from quantharm.common.files import write_text
from quantharm.common.prompts import read_prompts
from quantharm.common.records.source import Located
from quantharm.common.stage import add_device, begin_offline_stage, run_stage, stage_parser
from quantharm.models.devices import choose_device
from quantharm.models.loading import load_checkpoint, load_tokenizer, quiet, set_compute_dtype
from quantharm.models.safety import refuse_unsafe


def sample(model, ids: list[int], count: int, new_tokens: int, temperature: float, eos_token_ids: set[int], generator):
    """`count` sampled continuations of a prompt, without the end token; generator: torch's, on the CPU."""
    import torch

    from quantharm.speed.decoding import decode_one_token, prefill

    device = model.get_input_embeddings().weight.device
    answers: list[list[int]] = [[] for _ in range(count)]
    open_ones = set(range(count))
    logits, cache = prefill(model, torch.tensor([ids] * count, device=device))  # [count, vocabulary]
    for step in range(new_tokens):
        shares = torch.softmax(logits.float().cpu() / temperature, dim=-1)
        tokens = torch.multinomial(shares, 1, generator=generator)  # [count, 1]
        for i in sorted(open_ones):
            token = int(tokens[i])
            open_ones -= {i} if token in eos_token_ids else set()
            answers[i] += [] if token in eos_token_ids else [token]
        if not open_ones:
            break
        if step + 1 < new_tokens:
            logits, cache = decode_one_token(model, tokens.to(device), cache)
    return answers


def main() -> None:
    parser = stage_parser(__doc__)
    parser.add_argument("folder", type=Path, help="checkpoint")
    parser.add_argument("--prompts", type=Path, default=Path("data/prompts.jsonl"), help="prompt suite")
    parser.add_argument("--prompts-per-category", type=int, default=2)
    chat.add_flags(parser)
    parser.add_argument("--answers", type=int, default=20, help="of each prompt")
    parser.add_argument("--new-tokens", type=int, default=32)
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add_device(parser)
    parser.add_argument("--gpus", type=int, default=1, help="GPUs to spread the model over")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines")
    arguments = parser.parse_args()
    if min(arguments.answers, arguments.new_tokens, arguments.temperature) <= 0:
        raise UserError("--answers, --new-tokens and --temperature must be above 0")
    read_checkpoint_config(arguments.folder)
    refuse_unsafe(arguments.folder, allow_pickle=False, trust_remote_code=False)
    begin_offline_stage()
    quiet()
    import torch

    from quantharm.speed.decoding import eos_token_ids_of

    source: Located = {"path": str(arguments.folder), "allow_pickle": False, "trust_remote_code": False}
    tokenizer = load_tokenizer(source)
    device = choose_device(arguments.device, arguments.gpus)
    model = load_checkpoint(arguments.folder, source, arguments.dtype, device, arguments.gpus)
    set_compute_dtype(model, "pretrained", arguments.dtype, device)
    eos_token_ids, generator = eos_token_ids_of(model, tokenizer), torch.Generator().manual_seed(arguments.seed)
    lines = []
    for prompt in read_prompts(arguments.prompts, arguments.prompts_per_category):
        ids = chat.encode_prompt(tokenizer, prompt["prompt"], chat.Asking.of(arguments))
        for answer in sample(
            model, ids, arguments.answers, arguments.new_tokens, arguments.temperature, eos_token_ids, generator
        ):
            text = tokenizer.decode(answer, skip_special_tokens=True)
            lines.append(json.dumps({"prompt_id": prompt["id"], "text": text, "token_ids": answer}, ensure_ascii=False))
    write_text(arguments.output, "\n".join(lines) + "\n")
    print(f"{arguments.output}: {len(lines)} answers of {arguments.folder}")


if __name__ == "__main__":
    run_stage(main)
