"""Sentences whose words have tags: as people's files hold them, read right, doubted with a file and line, or refused."""

from __future__ import annotations

import json
from pathlib import Path

import datasets
import pytest

from memsup.shared.data.check import check_data
from memsup.shared.data.doubts import DoubtKind, Verdict
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.tag_files import joined, locate_tagged
from memsup.shared.data.tags import Fields, Sentence, find_fields, read_sentences
from memsup.shared.data.tags_check import about_labels, check_tags
from memsup.shared.settings import Task

CONLL = """\
-DOCSTART- -X- -X- O

EU NNP B-NP B-ORG
rejects VBZ B-VP O
German JJ B-NP B-MISC
call NN I-NP O

Peter NNP B-NP B-PER
Blackburn NNP I-NP I-PER
"""


def read(path: Path | str, **named: object) -> tuple[Fields, list[Sentence]]:
    source = locate_tagged(str(path))
    fields = find_fields(source, **{"text": None, "label": None, "labels": None, **named})  # type: ignore[arg-type]
    return fields, list(read_sentences(source, fields))


def spans(sentence: Sentence) -> list[str]:
    return [f"{span.label}:{sentence.text[span.start : span.end]}" for span in sentence.spans]


def written(folder: Path, name: str, content: str | list[dict[str, object]]) -> Path:
    file = folder / name
    text = content if isinstance(content, str) else "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in content)
    file.write_text(text, encoding="utf-8")
    return file


def judged(path: Path, **named: object) -> Verdict:
    return check_tags(Task(kind="token-classification", train=str(path), **named), budget_s=60)[2]  # type: ignore[arg-type]


def test_columns_are_read_as_conll_has_them(tmp_path: Path) -> None:
    fields, found = read(written(tmp_path, "eng.train", CONLL))
    assert (fields.text, fields.label) == ("column 1", "column 4")
    assert [(each.text, spans(each), each.line) for each in found] == [
        ("EU rejects German call", ["ORG:EU", "MISC:German"], 3),
        ("Peter Blackburn", ["PER:Peter Blackburn"], 8),
    ]
    chunks = read(tmp_path / "eng.train", label="column 3")[1]
    assert spans(chunks[0]) == ["NP:EU", "VP:rejects", "NP:German call"]
    classes = read(tmp_path / "eng.train", label="column 2")[1]
    assert classes[1].classes == ("NNP", "NNP")
    chosen = read(tmp_path / "eng.train", label="column 2", labels=["NNP", "JJ"])[1]
    assert [spans(each) for each in chosen] == [["NNP:EU", "JJ:German"], ["NNP:Peter Blackburn"]]


@pytest.mark.parametrize(
    ("name", "content", "wanted"),
    [
        ("a.txt", "Anna\tB-PER\r\nhere\tO\r\n\r\nAnna\tB-PER\r\n", ["PER:Anna", "PER:Anna"]),
        ("a.tsv", "word\tpos\ttag\nAnna\tN\tB-PER\n\nhere\tADV\tO\n", ["PER:Anna"]),
        ("a.conllu", "# sent_id = 1\n1\tAnna\t_\tB-PER\n2\there\t_\tO\n", ["PER:Anna"]),
        ("a.bio", "# id 5 domain=en\nAnna _ _ B-PER\nBerg _ _ I-PER\n", ["PER:Anna Berg"]),
        ("iob1.txt", "Anna I-PER\nBerg I-PER\nCarl B-PER\nsaw O\nRome I-LOC\n", ["PER:Anna Berg", "PER:Carl", "LOC:Rome"]),
        ("bioes.txt", "Anna B-PER\nBerg E-PER\nRome S-LOC\nsaw O\n", ["PER:Anna Berg", "LOC:Rome"]),
        ("bilou.txt", "Anna B-PER\nvan I-PER\nBerg L-PER\nRome U-LOC\nsaw O\n", ["PER:Anna van Berg", "LOC:Rome"]),
        ("bmes.txt", "高 B-NAME\n小 M-NAME\n龙 E-NAME\n是 O\n国 S-LOC\n", ["NAME:高小龙", "LOC:国"]),
        ("io.txt", "Anna PER\nBerg PER\nsaw O\nRome LOC\n", ["PER:Anna Berg", "LOC:Rome"]),
        ("last.txt", "Anna PER-B\nBerg PER-I\nsaw O\n", ["PER:Anna Berg"]),
        ("alone.txt", "Anna B\nBerg I\nsaw O\n", ["span:Anna Berg"]),
    ],
)
def test_schemes_and_columns_of_many_kinds_say_the_same_spans(
    name: str, content: str, wanted: list[str], tmp_path: Path
) -> None:
    assert [span for each in read(written(tmp_path, name, content))[1] for span in spans(each)] == wanted


@pytest.mark.parametrize(
    "row",
    [
        {"tokens": ["in", "New", "York"], "ner_tags": ["O", "B-LOC", "I-LOC"]},
        {"id": "1", "words": ["in", "New", "York"], "pos_tags": ["IN", "NNP", "NNP"], "ner": ["O", "B-LOC", "I-LOC"]},
        {"sentence": "in New York", "tags": "O B-LOC I-LOC"},
        {"text": "['in', 'New', 'York']", "labels": '["O", "B-LOC", "I-LOC"]'},
        {"tokens": "['in' 'New'\n 'York']", "ner_tags": "['O' 'B-LOC' \"I-LOC\"]"},  # as pandas writes numpy's lists
        {"text": "in New York", "entities": [{"start": 3, "end": 11, "label": "LOC"}]},
        {"text": "in New York", "entities": [{"start_offset": 3, "end_offset": 11, "entity_group": "LOC", "word": "New York"}]},
        {"text": "in New York ", "label": [[3, 12, "LOC"]]},
    ],
)
def test_lists_and_spans_are_read_as_data_sets_have_them(row: dict[str, object], tmp_path: Path) -> None:
    _, (one, _) = read(written(tmp_path, "a.jsonl", [row, row]))
    assert (one.text.strip(), spans(one), one.line) == ("in New York", ["LOC:New York"], 1)


def test_numbers_of_class_labels_are_their_names_and_others_are_asked_for(tmp_path: Path) -> None:
    numbered = {"tokens": [["in", "Rome"]], "ner_tags": [[0, 1]]}
    names = datasets.Sequence(datasets.ClassLabel(names=["O", "B-LOC"]))
    features = datasets.Features(tokens=datasets.Sequence(datasets.Value("string")), ner_tags=names)
    saved = datasets.Dataset.from_dict(numbered, features=features)
    saved.save_to_disk(str(tmp_path / "saved"))
    saved.to_parquet(str(tmp_path / "a.parquet"))
    bare = written(tmp_path, "a.jsonl", [{"tokens": ["in", "Rome"], "ner_tags": [0, 1]}] * 2)
    for path in (tmp_path / "saved", tmp_path / "a.parquet"):
        assert spans(read(path)[1][0]) == ["LOC:Rome"]
    with pytest.raises(NoTaskError, match=r"are numbers without names: .* --set task\.labels=O,B-PER"):
        read(bare)
    assert spans(read(bare, labels=["O", "B-LOC"])[1][0]) == ["LOC:Rome"]
    (tmp_path / "pandas.csv").write_text("tokens,ner_tags\n" + "in Rome,[0 1]\n" * 2)
    assert spans(read(tmp_path / "pandas.csv", labels=["O", "B-LOC"])[1][0]) == ["LOC:Rome"]
    with pytest.raises(InputError, match=r"line 1: the tag '1' has no name, since task.labels names the numbers from 0 to 0"):
        read(bare, labels=["NOUN"])


def test_a_word_a_row_belongs_to_the_sentence_that_its_row_says(tmp_path: Path) -> None:
    content = "Sentence #,Word,POS,Tag\nSentence: 1,Thousands,NNS,O\n,in,IN,O\n,London,NNP,B-geo\nSentence: 2,Iran,NNP,B-gpe\n"
    fields, found = read(written(tmp_path, "a.csv", content))
    assert (fields.text, fields.label, fields.sentence) == ("Word", "Tag", "Sentence #")
    assert [(one.text, spans(one), one.line) for one in found] == [
        ("Thousands in London", ["geo:London"], 2),
        ("Iran", ["gpe:Iran"], 5),
    ]


def test_words_with_slashes_are_spans_and_those_that_touch_are_one_name(tmp_path: Path) -> None:
    file = written(tmp_path, "people.txt", "国家/n 主席/n 江/nr 泽民/nr 在/p [中央/n 电台/n]nt 。/w\n" * 2)
    everything = read(file)[1][0]
    assert everything.text == "国家主席江泽民在中央电台。"
    assert spans(everything)[:4] == ["n:国家", "n:主席", "nr:江", "nr:泽民"]
    assert spans(read(file, labels=["nr", "nt"])[1][0]) == ["nr:江泽民", "nt:中央电台"]
    beside = written(tmp_path, "more.jsonl", [{"text": "江泽民", "spans": [[0, 1, "nr"], [1, 3, "nr"], [9, 9, "n"]]}])
    both = locate_tagged([str(file), str(beside)])
    with pytest.raises(
        InputError, match=r"more\.jsonl, line 1: column 'spans' has a span from 9 to 9"
    ):  # of no label that counts
        list(read_sentences(both, find_fields(both, text=None, label=None, labels=["nr", "nt"])))
    written(tmp_path, "more.jsonl", [{"text": "江泽民", "spans": [[0, 1, "nr"], [1, 3, "nr"]]}])
    found = list(read_sentences(both, find_fields(both, text=None, label=None, labels=["nr", "nt"])))
    assert [spans(each) for each in found[1:]] == [["nr:江泽民", "nt:中央电台"], ["nr:江", "nr:泽民"]]
    with pytest.raises(InputError, match="line 3: '好' is no word with a slash"):
        read(
            written(
                tmp_path,
                "broken.txt",
                "国家/n 主席/n 在/p\n国家/n 主席/n 在/p\n国家/n 主席/n 好\n" + "国家/n 主席/n 在/p\n" * 20,
            )
        )


def test_a_folder_has_parts(tmp_path: Path) -> None:
    for name in ("train.txt", "dev.txt", "test.txt"):
        written(tmp_path, name, "Anna B-PER\n\nhere O\n")
    written(tmp_path, "README", "What this is\n")
    source = locate_tagged(str(tmp_path))
    assert (source.files[0].path.name, str(source.evaluation)) == ("train.txt", str(tmp_path / "dev.txt"))


def test_words_become_a_text_as_people_write_it() -> None:
    assert joined(["New", "York", "."])[0] == "New York ."
    assert joined(["北", "京", "2008", "年"])[0] == "北京2008年"
    assert joined(["대한", "민국"])[0] == "대한 민국"
    assert joined(["1", "9", "年"], tightly=True) == ("19年", [(0, 1), (1, 2), (2, 3)])


# --------------------------------------------------------------------------------------------------------------------
# What is doubted, and what is refused


def test_a_span_that_begins_with_i_is_doubted_by_file_and_line(tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", CONLL + "\n" + CONLL + "\nMary NNP B-NP I-PER\n")
    (doubt,) = judged(file).doubts
    assert doubt.kind is DoubtKind.TAG_SEQUENCE
    assert f"1 of 7 spans begin otherwise; the first is {file}, line 21: 'Mary' I-PER" in doubt.what
    left_open = written(tmp_path, "b.txt", "Anna B-PER\nBerg E-PER\n\nCarl B-PER\nsaw O\nRome S-LOC\n")
    (doubt,) = judged(left_open).doubts
    assert f"1 of 3 spans do not; the first ends with {left_open}, line 4: 'Carl' B-PER" in doubt.what
    assert judged(written(tmp_path, "iob1.txt", "Anna I-PER\nBerg I-PER\nCarl B-PER\n\nsaw O\n")).doubts == ()


def test_places_that_are_counted_wrongly_are_doubted(tmp_path: Path) -> None:
    rows = [
        {"text": f"here {word} is", "entities": [{"start": 6, "end": 6 + len(word), "label": "X"}]}
        for word in ("Rome", "Paris")
    ]
    file = written(tmp_path, "a.jsonl", rows * 3)  # type: ignore[arg-type]
    (doubt,) = judged(file).doubts
    assert doubt.kind is DoubtKind.SPAN_EDGES
    assert f"6 of 6 spans begin or end inside of a word, .* the first is {file}, line 1".split(" .*")[0] in doubt.what
    thai = [{"text": "ผมรักกรุงเทพมาก", "entities": [{"start": 5, "end": 12, "label": "LOC"}]}] * 4
    assert judged(written(tmp_path, "b.jsonl", thai)).doubts == ()  # type: ignore[arg-type]


def test_other_doubts_have_what_settles_them(tmp_path: Path) -> None:
    spellings = written(tmp_path, "a.txt", "Anna B-PER\n\nRome B-per\n\nhere O\n")
    assert [doubt.kind for doubt in judged(spellings).doubts] == [DoubtKind.SPELLINGS]
    columns = written(tmp_path, "b.jsonl", [{"tokens": ["a", "b"], "chunk": ["B-X", "O"], "tags": ["B-NP", "O"]}] * 2)
    (doubt,) = judged(columns).doubts
    assert (doubt.kind, doubt.settle) == (DoubtKind.LABEL_COLUMN, ("task.label=tags", "task.label=chunk"))
    assert judged(columns, label="tags").doubts == ()
    beside = {"tokens": ["a", "b"], "upos": ["N", "V"], "tags": ["B-NP", "O"]}
    assert judged(written(tmp_path, "e.jsonl", [beside, beside])).doubts == ()
    train = written(tmp_path, "c.txt", "".join(f"Anna{n} B-PER\nhere O\n\n" for n in range(30)))
    (doubt,) = judged(train, eval=str(train)).doubts
    assert (doubt.kind, doubt.settle) == (DoubtKind.EVALUATION, ("task.eval=auto",))


def test_what_would_be_trained_is_shown(tmp_path: Path) -> None:
    task = Task(kind="token-classification", train=str(written(tmp_path, "a.txt", CONLL + "\nno NN B-NP O\n")))
    train, _, verdict = check_tags(task, budget_s=60)
    assert [(shown.text, shown.label, shown.line) for shown in verdict.examples] == [
        ("EU rejects German call", "ORG: EU, MISC: German", 3),
        ("Peter Blackburn", "PER: Peter Blackburn", 8),
        ("no", "O", 11),
    ]
    assert train.labels == ("O", "B-MISC", "I-MISC", "B-ORG", "I-ORG", "B-PER", "I-PER")
    assert dict(train.about)["labels"] == "ORG 1, MISC 1, PER 1"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("a.txt", "Anna B-PER\nhere\n", "line 2 has 1 column and the first line has 2"),
        ("a.txt", "Anna\nhere\n", "line 1 has one column: write a word, a tab and its tag"),
        ("a.txt", "Anna B-PER\nhere O\nRome LOC\n" * 400, "line 3: the tag 'LOC' is not written as the others are"),
        ("a.txt", "Anna O\n\nhere O\n", "all tags in 'column 2' say O"),
        (
            "a.jsonl",
            [{"tokens": ["a", "b"], "tags": ["O", "B-X"]}] * 20 + [{"tokens": ["a"], "tags": []}],
            "line 21 has 1 words",
        ),
        (
            "a.jsonl",
            [{"text": "a b", "entities": [{"start": 2, "end": 9, "label": "X"}]}],
            "from 2 to 9, and the text has 3 char",
        ),
        (
            "a.jsonl",
            [{"text": "é b c", "entities": [{"start": 0, "end": 3, "label": "X"}, {"start": 2, "end": 5, "label": "Y"}]}],
            r"line 1: the spans 'X' \(0 to 3\) and 'Y' \(2 to 5\) overlap",
        ),
        (
            "a.jsonl",
            [{"text": "ééé Rome", "entities": [{"start": 7, "end": 11, "label": "X", "text": "Rome"}]}],
            "from 7 to 11, and the text has 8",
        ),
        (
            "a.jsonl",
            [{"text": "ééé Rome too", "entities": [{"start": 7, "end": 11, "label": "X", "text": "Rome"}]}],
            "says that 7 to 11 is 'Rome', and the text has 'e to' there: .* not in bytes",
        ),
        ("a.jsonl", [{"text": "good", "label": "pos"}] * 3, "has no sentences with tags: its columns are 'text', 'label'"),
        ("a.jsonl", [{"tokens": ["a"], "tags": ["\ud800"]}, {"tokens": ["b"], "tags": ["O"]}], "line 1 holds half a character"),
        ("a.jsonl", [{"tokens": ["\ud800"], "tags": ["B-X"]}], "line 1 holds half a character"),
        ("a.jsonl", [{"text": "a b", "entities": [[0, 1, "\ud800"]]}], "line 1 holds half a character"),
    ],
)
def test_what_cannot_be_used_is_refused_by_file_and_line(
    name: str, content: str | list[dict[str, object]], words: str, tmp_path: Path
) -> None:
    file = tmp_path / name
    text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
    file.write_text(text, encoding="utf-8")
    with pytest.raises(InputError, match=words):
        judged(file)


def test_evaluation_data_may_know_no_other_labels(tmp_path: Path) -> None:
    train = written(tmp_path, "a.txt", "Anna B-PER\n\nhere O\n")
    with pytest.raises(InputError, match=r"line 3: the label 'LOC' does not occur in the training data, which has 'PER'"):
        judged(train, eval=str(written(tmp_path, "b.txt", "Berg B-PER\n\nRome B-LOC\n")))
    assert judged(train, eval=str(tmp_path / "b.txt"), labels=["PER", "O"]).doubts == ()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.conll", CONLL),
        ("a.txt", CONLL),
        ("a.bio", "Anna B-PER\nhere O\n"),
        ("a.tsv", "Anna\tB-PER\n\nhere\tO\n" * 9),
        ("slashed.txt", "国家/n 主席/n 江/nr 泽民/nr\n" * 9),
        ("a.jsonl", '{"tokens": ["in", "Rome"], "ner_tags": ["O", "B-LOC"]}\n' * 9),
        ("b.jsonl", '{"id": 1, "tokens": ["in", "Rome"], "ner_tags": [0, 1]}\n' * 9),
        ("c.jsonl", '{"text": "in Rome", "label": [[3, 7, "LOC"]]}\n' * 9),
        ("d.jsonl", '{"text": "in Rome", "entities": [{"start": 3, "end": 7, "label": "LOC"}]}\n' * 9),
        ("a.csv", "sentence,tags\n" + "in Rome,O B-LOC\n" * 9),
    ],
)
def test_where_texts_are_wanted_tags_are_offered(name: str, content: str, tmp_path: Path) -> None:
    with pytest.raises(NoTaskError, match=r"To learn those.*: --set task\.kind=token-classification"):
        check_data(str(written(tmp_path, name, content)), budget_s=60)


def test_a_scheme_is_named_where_it_is_learnt_as_another(tmp_path: Path) -> None:
    from memsup.shared.data.tags_check import TagEvidence

    fields, found = read(written(tmp_path, "a.txt", "Anna S-PER\nhere O\n"))
    evidence = TagEvidence(fields)
    assert all(map(evidence.takes, found))
    assert about_labels(evidence) == "PER 1; the tags are BIOES, learnt as IOB2"


def test_settings_of_other_tasks_are_refused(tmp_path: Path) -> None:
    file = written(tmp_path, "a.txt", CONLL)
    for named in ({"text_pair": "b"}, {"class_weights": "balanced"}, {"problem_type": "regression"}):
        with pytest.raises(InputError, match=f"task.{next(iter(named))} is for texts that are classified"):
            judged(file, **named)
