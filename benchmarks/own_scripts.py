"""Unchanged training scripts of others under memsup: limited, killed, paused with release, stopped and started
(docs/own-programs.md).

    python benchmarks/own_scripts.py --python PYTHON --examples FOLDER [--kills 20] [--share 60] [NAME …] [-- COMMAND …]

PYTHON is an interpreter that has torch, transformers, accelerate, datasets, evaluate, seqeval, trl, peft, lightning and
sentence-transformers, as far as the scripts named need them, and nothing of memsup. FOLDER has Hugging Face's examples
`run_classification.py`, `run_clm.py`, `run_ner.py`, `run_qa.py` with what they import; they are fetched to be run only.
Models, tokenizer, data and the metrics that the examples ask a hub for are made here, small; nothing drops out, one thread.

Each script is run three times. *Alone*, which says how much memory it takes and which weights it ends with. *Free*, under
memsup with all the memory it wants. *Limited*, to a share of that. The last two are killed with SIGKILL at random instants,
paused with `--release`, stopped, and started again, and have to end at their last step. What they end with is compared with
what the first has ended with. Prints Markdown. A COMMAND of your own has `{out}` where its results go, and is
run in an empty folder; weights are compared where it leaves `{out}/*.safetensors` or `{out}/*.pt`.
"""

from __future__ import annotations

import argparse
import os
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from kit.cli_process import end_supervisors, memsup  # noqa: E402
from kit.run_state import ledger, status, step_of, until  # noqa: E402

MIB = 1 << 20
OVER = {"finished", "failed", "stopped"}
QUIET = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": "1",
         "TRANSFORMERS_VERBOSITY": "error", "CUDA_VISIBLE_DEVICES": ""}  # fmt: skip
TRAINER = (
    "--do_train --max_steps {steps} --save_strategy no --logging_steps 1 --report_to none --use_cpu --disable_tqdm True "
    "--learning_rate 1e-3 --seed 7 --output_dir {out} "
)
SCRIPTS = {
    "run_classification": "{examples}/run_classification.py --model_name_or_path bert-classes --train_file texts.csv "
    "--validation_file few.csv --text_column_names sentence --label_column_name label --metric_name accuracy --do_eval "
    "--max_seq_length 128 --per_device_train_batch_size 480 " + TRAINER,
    "run_clm": "{examples}/run_clm.py --model_name_or_path llama --train_file texts.txt --validation_split_percentage 5 "
    "--block_size 128 --per_device_train_batch_size 200 " + TRAINER,
    "run_ner": "{examples}/run_ner.py --model_name_or_path bert-tags --train_file tags.json --validation_file few_tags.json "
    "--text_column_name tokens --label_column_name tags --max_seq_length 128 --pad_to_max_length --do_eval "
    "--per_device_train_batch_size 384 --gradient_accumulation_steps 2 " + TRAINER,
    "run_qa": "{examples}/run_qa.py --model_name_or_path bert-spans --train_file answers.json "
    "--validation_file few_answers.json --max_seq_length 128 --doc_stride 32 --per_device_train_batch_size 480 " + TRAINER,
    "sft": "-m trl.scripts.sft --model_name_or_path llama --dataset_name lines --use_peft --lora_r 8 --lora_dropout 0 "
    "--lora_target_modules q_proj v_proj --max_length 128 --per_device_train_batch_size 200 --gradient_checkpointing False "
    "--bf16 False " + TRAINER.replace("--do_train ", ""),
    "sft packed": "-m trl.scripts.sft --model_name_or_path llama --dataset_name lines --use_peft --lora_r 8 --lora_dropout 0 "
    "--lora_target_modules q_proj v_proj --max_length 512 --packing --per_device_train_batch_size 16 "
    "--gradient_checkpointing False --bf16 False " + TRAINER.replace("--do_train ", ""),
    "sentence-transformers": "sentences.py {out} {steps}",
    "loop": "loop.py {out} {steps}",
    "accelerate": "accelerated.py {out} {steps}",
    "lightning": "lit.py {out} {steps}",
}
NOT_CUT = {"lightning"}
"""What is never computed in parts, and so cannot have less memory than it wants."""
OWN = {
    "sentences.py": """
import sys
import torch
from datasets import Dataset
from sentence_transformers import SentenceTransformer, SentenceTransformerTrainer, SentenceTransformerTrainingArguments, losses
from sentence_transformers.models import Pooling, Transformer

texts = open("texts.txt").read().splitlines()
torch.manual_seed(0)
model = SentenceTransformer(modules=[words := Transformer("bert", max_seq_length=128), Pooling(64)], device="cpu")
rows = Dataset.from_dict({"sentence1": texts[::2], "sentence2": texts[1::2],
                          "score": [at % 5 / 4 for at in range(len(texts) // 2)]})
arguments = SentenceTransformerTrainingArguments(sys.argv[1], max_steps=int(sys.argv[2]), seed=7, use_cpu=True,
    per_device_train_batch_size=240, report_to="none",
    save_strategy="no", logging_steps=1, learning_rate=1e-3, disable_tqdm=True)
SentenceTransformerTrainer(model, arguments, train_dataset=rows, loss=losses.CosineSimilarityLoss(model)).train()
model.save_pretrained(sys.argv[1])
""",
    "loop.py": """
import os, sys
import memsup
import torch
from torch.nn import functional

class Block(torch.nn.Module):
    def __init__(self, width):
        super().__init__()
        self.first, self.second = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.asks, self.gives = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.wide = torch.nn.Sequential(torch.nn.Linear(width, 4 * width), torch.nn.GELU(), torch.nn.Linear(4 * width, width))

    def forward(self, x):
        rows, length, width = x.shape
        q, k, v = (each.view(rows, length, 4, width // 4).transpose(1, 2) for each in self.asks(self.first(x)).split(width, 2))
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.gives(seen.transpose(1, 2).reshape(rows, length, width))
        return x + self.wide(self.second(x))

class GPT(torch.nn.Module):
    def __init__(self, words=512, width=64, length=128):
        super().__init__()
        self.words, self.places = torch.nn.Embedding(words, width), torch.nn.Embedding(length, width)
        self.blocks = torch.nn.Sequential(Block(width), Block(width))
        self.head = torch.nn.Sequential(torch.nn.LayerNorm(width), torch.nn.Linear(width, words))

    def forward(self, ids):
        return self.head(self.blocks(self.words(ids) + self.places(torch.arange(ids.shape[1]))))

torch.manual_seed(0)
tokens = torch.randint(0, 512, (400_000,))
model = GPT()
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
run = memsup.guard(model=model, optimizer=optimizer)

def loss_of(rows):
    return functional.cross_entropy(model(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())

class Batches:
    def __iter__(self):
        while True:
            starts = torch.randint(0, len(tokens) - 129, (300,))
            yield torch.stack([tokens[at : at + 129] for at in starts.tolist()])

for batch in run.steps(Batches(), epochs=None, total=int(sys.argv[2])):
    run.backward(loss_of, batch)
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    optimizer.zero_grad()
os.makedirs(sys.argv[1], exist_ok=True)
torch.save(model.state_dict(), sys.argv[1] + "/model.pt")
run.finish(sys.argv[1] + "/model.pt")
""",
    "accelerated.py": """
import os, sys
import memsup
import torch
from accelerate import Accelerator
from transformers import AutoModelForSequenceClassification

torch.manual_seed(0)
model = AutoModelForSequenceClassification.from_pretrained("bert-classes")
ids = torch.randint(5, 500, (4000, 128))
rows = torch.utils.data.TensorDataset(ids, ids.sum(1) % 2)
accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
loader = torch.utils.data.DataLoader(rows, batch_size=480, shuffle=True, drop_last=True)
model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
run = memsup.guard(accelerator)
for batch in run.steps(loader, epochs=None, total=int(sys.argv[2])):
    with accelerator.accumulate(model):
        run.backward(lambda part: model(input_ids=part[0], labels=part[1]).loss, batch)
        optimizer.step()
        optimizer.zero_grad()
os.makedirs(sys.argv[1], exist_ok=True)
torch.save(model.state_dict(), sys.argv[1] + "/model.pt")
run.finish(sys.argv[1] + "/model.pt")
""",
    "lit.py": """
import os, sys
import lightning as L
import memsup
import torch
from transformers import AutoModelForSequenceClassification

class Lit(L.LightningModule):
    def __init__(self):
        super().__init__()
        self.model = AutoModelForSequenceClassification.from_pretrained("bert-classes")

    def training_step(self, batch, _):
        return self.model(input_ids=batch[0], labels=batch[1]).loss

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

L.seed_everything(7)
ids = torch.randint(5, 500, (4000, 128))
loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(ids, ids.sum(1) % 2), batch_size=128, shuffle=True)
lit = Lit()
trainer = memsup.guard(L.Trainer(max_steps=int(sys.argv[2]), accelerator="cpu", logger=False, enable_checkpointing=False,
                                 enable_progress_bar=False, enable_model_summary=False))
trainer.fit(lit, loader)
os.makedirs(sys.argv[1], exist_ok=True)
torch.save(lit.model.state_dict(), sys.argv[1] + "/model.pt")
""",
}
"""Programs as a person writes them, three of them with memsup's lines."""
METRIC = """
import datasets
import evaluate

class Own(evaluate.Metric):
    def _info(self):
        features = datasets.Features({features})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references, **_):
        return {found}
"""
FEW = "datasets.Value('int64')"
MANY = "datasets.Sequence(datasets.Value('string'))"
OVERALL = "dict.fromkeys(('overall_precision', 'overall_recall', 'overall_f1', 'overall_accuracy'), 0.5)"
SHARE = "{'accuracy': float(sum(map(int.__eq__, predictions, references)) / len(references))}"
METRICS = {
    "accuracy": METRIC.format(features=f"{{'predictions': {FEW}, 'references': {FEW}}}", found=SHARE),
    "seqeval": METRIC.format(features=f"{{'predictions': {MANY}, 'references': {MANY}}}", found=OVERALL),
    "squad": METRIC.format(features=f"{{'predictions': {MANY}, 'references': {MANY}}}", found="{}"),
}
ASSETS = """
import csv, json, os, random
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (BertConfig, BertForQuestionAnswering, BertForSequenceClassification, BertForTokenClassification,
                          BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast)

random.seed(1)
torch.manual_seed(1)
names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
words = ["".join(random.choices("abcdefghijklmnop", k=5)) + str(at) for at in range(507)]
own = Tokenizer(models.WordLevel({name: at for at, name in enumerate(names + words)}, unk_token="[UNK]"))
own.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
own.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1",
                                                   special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
                                    eos_token="[SEP]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=128)
shape = dict(vocab_size=512, hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256,
             max_position_embeddings=128, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0)
kinds = {"bert": BertModel, "bert-classes": BertForSequenceClassification, "bert-tags": BertForTokenClassification,
         "bert-spans": BertForQuestionAnswering}
for name, kind in kinds.items():
    kind(BertConfig(**shape, num_labels=3 if name == "bert-tags" else 2)).save_pretrained(name)
    tokenizer.save_pretrained(name)
LlamaForCausalLM(LlamaConfig(vocab_size=512, hidden_size=64, intermediate_size=256, num_hidden_layers=2, num_attention_heads=2,
                             num_key_value_heads=2, max_position_embeddings=2048, pad_token_id=0, bos_token_id=2,
                             eos_token_id=3)).save_pretrained("llama")
own.post_processor = processors.TemplateProcessing(single="$A [SEP]", special_tokens=[("[SEP]", 3)])
plain = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="[PAD]", unk_token="[UNK]", eos_token="[SEP]",
                                model_max_length=2048)
plain.save_pretrained("llama")
texts = [" ".join(random.choices(words, k=random.randint(60, 120))) for _ in range(1500)]
with open("texts.txt", "w") as file:
    file.write("\\n".join(texts))
for name, some in (("texts.csv", texts), ("few.csv", texts[:8])):
    with open(name, "w", newline="") as file:
        csv.writer(file).writerows([["sentence", "label"], *([text, len(text) % 2] for text in some)])
os.makedirs("lines", exist_ok=True)
with open("lines/train.jsonl", "w") as file:
    file.writelines(json.dumps({"text": text}) + "\\n" for text in texts)
for name, some in (("tags.json", texts), ("few_tags.json", texts[:8])):
    with open(name, "w") as file:
        for text in some:
            tags = [["O", "B-A", "B-B"][len(word) % 3] for word in text.split()]
            file.write(json.dumps({"tokens": text.split(), "tags": tags}) + "\\n")
for name, some in (("answers.json", texts), ("few_answers.json", texts[:8])):
    rows = []
    for at, text in enumerate(some):
        answer = random.choice(text.split())
        rows.append({"id": str(at), "title": "t", "question": " ".join(random.choices(words, k=4)), "context": text,
                     "answers": {"text": [answer], "answer_start": [text.index(answer)]}})
    with open(name, "w") as file:
        json.dump({"data": rows}, file)
"""


@dataclass
class End:
    """What a script has ended with."""

    peak_bytes: int = 0
    kills: int = 0
    parts: int = 0
    """How often its batches were computed in smaller parts."""
    state: str = ""
    step: int = 0
    steps: int = 0
    left_bytes: int = -1
    """What its processes held while it was released. It is -1 where it was over before that."""
    gave_bytes: int = 0
    took_s: float = 0.0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help=", ".join(SCRIPTS))
    parser.add_argument("--python", default=sys.executable)
    parser.add_argument("--examples", default=".")
    parser.add_argument("--assets", help="a folder where models and data are kept from one call to the next")
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--share", type=int, default=60, help="of the memory that it wants, in percent; 0: not limited")
    parser.add_argument("--most-s", type=float, default=3600, help="after so long a run is not killed any more")
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--not-free", action="store_true", help="leave out the run that is not limited")
    given = sys.argv[1:]
    own = given[given.index("--") + 1 :] if "--" in given else []
    options = parser.parse_args(given[: given.index("--")] if own else given)
    commands = {name: shlex.split(f"{options.python} {SCRIPTS[name]}") for name in options.names or ([] if own else SCRIPTS)}
    if own:
        commands["yours"] = own
    print("| script | wants | limit | kills | parts made smaller | ended | largest difference of a weight | released |")
    print("|---|---|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="own-", dir="/tmp") as scratch:
        assets = Path(options.assets or scratch, "assets")
        if not own and not assets.exists():
            make_assets(assets, options.python)
        for name, command in commands.items():
            prove(name, command, Path(scratch), assets, options)
    return 0


def make_assets(assets: Path, python: str) -> None:
    assets.mkdir(parents=True)
    for name, program in OWN.items():
        (assets / name).write_text(program)
    for name, metric in METRICS.items():
        (assets / name).mkdir()
        (assets / name / f"{name}.py").write_text(metric)
    subprocess.run([python, "-c", ASSETS], cwd=assets, env=os.environ | QUIET, check=True)


def prove(name: str, command: list[str], scratch: Path, assets: Path, options: argparse.Namespace) -> None:
    place = assets if name in SCRIPTS else scratch

    def told(out: str) -> list[str]:
        (scratch / name).mkdir(exist_ok=True)
        values = {"out": str(scratch / name / out), "examples": options.examples, "steps": str(options.steps)}
        return [word.format(**values) for word in command]

    wanted = alone(told("alone"), place, scratch / name / "alone.log")
    results = scratch / name
    ways = ([] if options.not_free else [0]) + ([options.share] if options.share and name not in NOT_CUT else [])
    for share in ways:
        way = "limited" if share else "free"
        limit = wanted * share // 100
        end = guarded(told(way), place, scratch / name / way, limit, options, random.Random(options.seed))
        differs = difference(results / "alone", results / way, options.python)
        row = [name, mib(wanted), mib(limit) if limit else "–", str(end.kills), str(end.parts)]
        row += [f"{end.state}, step {end.step} of {end.steps}", differs]
        row += [f"{mib(end.gave_bytes)} of {mib(end.gave_bytes + end.left_bytes)}" if end.left_bytes >= 0 else "–"]
        print(f"| {' | '.join(row)} | {end.took_s:.0f} s", flush=True)


def mib(count: int) -> str:
    return f"{count / MIB:,.0f} MiB"


def alone(command: list[str], place: Path, log: Path) -> int:
    """Runs a command by itself, with a `memsup` that does nothing but train; returns the most memory it had, in bytes."""
    environment = os.environ | QUIET | {"PYTHONPATH": str(ROOT / "build" / "links")}
    with open(log, "wb") as printed:
        process = subprocess.Popen(command, cwd=place, env=environment, stdout=printed, stderr=printed)
        _, code, used = os.wait4(process.pid, 0)
    assert code == 0, log.read_text()[-4000:]
    return used.ru_maxrss * 1024


def guarded(command: list[str], place: Path, own: Path, limit: int, options: argparse.Namespace, draw: random.Random) -> End:
    """Runs a command under memsup: killed at random, paused with release, stopped and started in its middle."""
    os.environ |= QUIET | {
        "MEMSUP_STATE_DIR": f"{own}-state",
        "MEMSUP_RUNTIME_DIR": f"{own}-run",
        "MEMSUP_CHECKPOINT_EVERY": "1s",
    }
    end, began_s = End(), time.monotonic()
    setting = ["--set", f"limits.ram={limit // MIB}MiB"] if limit else []
    ran = memsup("start", "-d", *setting, "--", *command, cwd=place)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    try:
        for disturb in disturbances(options.kills, end, draw):
            if over() or time.monotonic() - began_s > options.most_s:
                break
            disturb()
        for _ in range(5):  # it may have been given up, so often was it killed
            if until(lambda seen: seen["state"] in OVER, 300)["state"] == "finished":
                break
            memsup("start", "-d")
        seen = status()
        end.state, end.step, end.steps = seen["state"], step_of(seen), seen["progress"]["total_steps"] or 0
        end.parts = sum(line["event"] == "out_of_memory" for line in ledger())
        if end.state != "finished":
            print(memsup("logs", "--worker").stdout[-3000:], memsup("status").stdout, file=sys.stderr)
    finally:
        end_supervisors()
    end.took_s = time.monotonic() - began_s
    return end


def over() -> bool:
    seen = status()
    return seen is None or seen["state"] in OVER


def disturbances(kills: int, end: End, draw: random.Random) -> Iterator[Any]:
    """Kills at random, with a release and a stop among them."""
    for count in range(kills):
        if count == kills // 3:
            yield lambda: release(end)
        if count == 2 * kills // 3:
            yield stop_and_start
        yield lambda: kill(end, draw)


def kill(end: End, draw: random.Random) -> None:
    """Mostly while it trains, else at whatever it is."""
    if draw.random() < 0.75:
        until(lambda seen: seen["state"] in OVER or (seen["progress"]["phase"] in {"training", "saving", "evaluating"}), 120)
        time.sleep(draw.uniform(0, 3))
    else:
        time.sleep(draw.uniform(0, 6))
    seen = status()
    if seen["worker_pid"] is not None and seen["state"] not in OVER:
        try:
            os.kill(seen["worker_pid"], signal.SIGKILL)
        except ProcessLookupError:
            return
        end.kills += 1
        until(lambda now: now["state"] in OVER or now["worker_pid"] != seen["worker_pid"], 60)


def trains(seen: Any) -> bool:
    """Whether it trains, and has done so for a step, or is over."""
    return seen["state"] in OVER or (
        seen["state"] == "running" and seen["progress"]["phase"] == "training" and step_of(seen) > 0
    )


def processes() -> list[psutil.Process]:
    """What the supervisor has below it and is none of its own parts: the program and what it has started."""
    pid = status()["worker_pid"]
    try:
        return [] if pid is None else [psutil.Process(pid), *psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def release(end: End) -> None:
    seen = until(
        lambda seen: seen["state"] in OVER or (seen["state"] == "running" and seen["progress"]["phase"] == "training"), 120
    )
    if seen["state"] in OVER:
        return
    before = processes()
    held = sum(process.memory_info().rss for process in before)
    released = memsup("pause", "--release", within_s=200)
    if released.returncode == 0:
        end.left_bytes = sum(process.memory_info().rss for process in [*before, *processes()] if process.is_running())
        end.gave_bytes = held - end.left_bytes
    elif not over():
        print(released.stdout + released.stderr, file=sys.stderr)
    memsup("resume")


def stop_and_start() -> None:
    if until(trains, 200)["state"] not in OVER:
        memsup("stop", within_s=200)
        memsup("start", "-d")


COMPARE = """
import glob, os, sys
import torch
from safetensors.torch import load_file

def weights(folder):
    found = {}
    for path in sorted(glob.glob(folder + "/*.safetensors") + glob.glob(folder + "/*.pt")):
        found |= load_file(path) if path.endswith("s") else torch.load(path)
    return found

one, other = (weights(folder) for folder in sys.argv[1:])
assert one.keys() == other.keys() and one, (len(one), len(other))
if all(torch.equal(one[name], other[name]) for name in one):
    print("none, bit for bit")
else:
    print(f"{max((one[name] - other[name]).abs().max().item() for name in one):.1e}")
"""


def difference(one: Path, other: Path, python: str) -> str:
    done = subprocess.run([python, "-c", COMPARE, one, other], capture_output=True, text=True, check=False)
    return done.stdout.strip() or done.stderr.strip().splitlines()[-1]


if __name__ == "__main__":
    sys.exit(main())
