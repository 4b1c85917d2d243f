"""How often the intake is wrong: generated data sets, half of them spoilt in one of many ways, each written, read and judged.

    .venv/bin/python benchmarks/intake.py [--sets 1000] [--seed 1] [--show]

Prints the spoilt ones that were taken as clear, the clean ones that were doubted, and the time. All follows from the seed.
"""

from __future__ import annotations

import argparse
import csv
import io
import json
import sys
import tempfile
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from intake_sets import CLEAN, HELD_OUT, HELD_OUT_SPOILT, SPOILT, DataSet, cases

from memsup.shared.data.check import check_data
from memsup.shared.data.doubts import Answer
from memsup.shared.data.errors import InputError
from memsup.shared.data.judge import judge


def write(data: DataSet, folder: Path) -> str:
    """Writes it into the empty `folder`; returns what to give as task.train."""
    if data.form == "folder":
        for label in data.labels():
            name = "".join("_" if sign in "/\0" else sign for sign in label)
            texts = [" ".join(text.split(" ")).replace("\n", " ") for text, had in data.rows if had == label]
            (folder / f"{name}.txt").write_text("\n".join(texts) + "\n", encoding="utf-8")
        return str(folder)
    names = [data.names[0], *data.more, data.names[1]]
    rows = [[text, *(values[place] for values in data.more.values()), label] for place, (text, label) in enumerate(data.rows)]
    return str(_write_table(folder / "data", data.form, names, rows, preamble=data.preamble))


def _write_table(file: Path, form: str, names: list[str], rows: list[list[str]], *, preamble: bool = True) -> Path:
    if form == "parquet":
        import pyarrow
        from pyarrow import parquet

        file = file.with_suffix(".parquet")
        parquet.write_table(pyarrow.table({name: [row[place] for row in rows] for place, name in enumerate(names)}), file)
        return file
    if form == "jsonl":
        file = file.with_suffix(".jsonl")
        lines = [json.dumps(dict(zip(names, row, strict=True)), ensure_ascii=False) for row in rows]
        file.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return file
    file = file.with_suffix(".tsv" if form == "tsv" else ".csv")
    out = io.StringIO()
    writer = csv.writer(out, delimiter={"csv": ",", "tsv": "\t", "semicolons": ";"}[form])
    writer.writerows(([names] if preamble else []) + rows)
    file.write_text(out.getvalue(), encoding="utf-8", newline="")
    return file


def answer(data: DataSet, folder: Path) -> tuple[Answer, str]:
    """What the intake says, and why."""
    train = write(data, folder)
    try:
        seen = check_data(train, text_pair=data.text_pair, budget_s=60)
        evaluation = None
        if data.evaluation is not None:
            part = folder / "evaluation"
            part.mkdir()
            evaluation = check_data(
                write(replace(data, rows=data.evaluation, more={}, evaluation=None), part), budget_s=60, train=seen
            )
    except InputError as error:
        return Answer.NO_TASK, str(error)
    verdict = judge(seen.evidence, evaluation.evidence if evaluation else None)
    return verdict.answer, " ".join(f"[{doubt.kind}] {doubt.what}" for doubt in verdict.doubts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sets", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--show", action="store_true", help="each set that was judged wrongly, and why")
    parser.add_argument("--held-out", action="store_true", help="only what was written when the judge was done")
    arguments = parser.parse_args()
    wrong: Counter[str] = Counter()
    of_kind: Counter[bool] = Counter()
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    for case in cases(arguments.sets, arguments.seed, held_out=arguments.held_out):
        with tempfile.TemporaryDirectory(prefix="intake-") as folder:
            found, why = answer(case.data, Path(folder))
        of_kind[case.spoilt] += 1
        if (found is Answer.CLEAR) == case.spoilt:
            wrong[f"{'taken as clear' if case.spoilt else 'doubted'}: {case.name.split(' of ')[0]}"] += 1
            if arguments.show:
                print(f"{case.name}: {found} {why}\n    {case.data.rows[:2]} {case.data.labels().most_common(4)}")
    taken_s, cpu_s = time.monotonic() - began_s, time.process_time() - began_cpu_s
    missed = sum(count for name, count in wrong.items() if name.startswith("taken"))
    families, ways = (HELD_OUT, HELD_OUT_SPOILT) if arguments.held_out else (CLEAN, SPOILT)
    print(f"{len(families)} clean families, {len(ways)} ways of spoiling, seed {arguments.seed}")
    print(f"spoilt and taken as clear: {missed} of {of_kind[True]}")
    print(f"clean and doubted: {wrong.total() - missed} of {of_kind[False]}")
    for name, count in wrong.most_common():
        print(f"  {name}: {count}")
    print(f"{taken_s:.1f} s, {cpu_s:.1f} s of them computing; generated, written, read and judged")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
