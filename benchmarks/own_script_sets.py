"""What `own_scripts.py` runs: commands of unchanged scripts, programs as a person writes them, and the small models, data and
metrics that they are run with. Nothing drops out, so that what they end with can be compared.
"""

from __future__ import annotations

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
