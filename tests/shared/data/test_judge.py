"""What the intake makes of data: clear, doubtful or no task; by the data's shape, in any language."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from pathlib import Path

import hypothesis.strategies as st
import intake
import pytest
from hypothesis import given
from intake_sets import CLEAN, SPOILT, cases

from memsup.shared.data import evidence as evidence_module
from memsup.shared.data.check import check_data, refuse_unknown_weights
from memsup.shared.data.columns import Columns, Table
from memsup.shared.data.doubts import Answer, DoubtKind, Verdict
from memsup.shared.data.errors import InputError, NoTaskError
from memsup.shared.data.evidence import Evidence
from memsup.shared.data.examples import Example
from memsup.shared.data.judge import judge
from memsup.shared.data.looks import Look, is_prose, look
from memsup.shared.data.targets import several_labels

FILE = Path("x.csv")


def evidence_of(
    rows: Sequence[tuple[str, str]], *, complete: bool = True, names: tuple[str, str] = ("text", "label")
) -> Evidence:
    evidence = Evidence(Table(Columns(*names), {name: [] for name in names}), complete=complete)
    for line, (text, label) in enumerate(rows, start=2):
        evidence.takes(Example(text, label, FILE, line))
    return evidence


def of_labels(counts: dict[str, int], *, complete: bool = True) -> Verdict:
    """The verdict on so many rows of each label, with texts that are all different."""
    rows = [
        (f"the room was number {number} {place}", name)
        for number, (name, count) in enumerate(counts.items())
        for place in range(count)
    ]
    return judge(evidence_of(rows, complete=complete))


def kinds(verdict: Verdict) -> list[DoubtKind]:
    return [doubt.kind for doubt in verdict.doubts]


def judged(file: Path, content: str, **named: str) -> Verdict:
    file.write_text(content, encoding="utf-8")
    return judge(check_data(str(file), budget_s=60, **named).evidence)  # type: ignore[arg-type]


@pytest.mark.parametrize("unit", ["a", "a1", "1,", "1.1,", "-1.5 ;", "@a.", "no label ", "un", "12:", "不", "é"])
def test_labels_of_any_length_are_judged_at_once(unit: str) -> None:
    """As of a column that holds whole files; a search that begins anew at each sign would take hours."""
    counts = {"This is a short note.": 9} | {unit * (20_000 // len(unit)) + end: 9 for end in ("x", "y!", "z7", " ")}
    assert of_labels(counts).doubts


# --------------------------------------------------------------------------------------------------------------------
# The rate


def test_of_generated_sets_none_that_is_spoilt_is_clear_and_none_that_is_clean_is_doubted(tmp_path: Path) -> None:
    """Each family and each way of spoiling once; `benchmarks/intake.py` does a thousand."""
    wrong = []
    for number, case in enumerate(cases(2 * max(len(CLEAN), len(SPOILT)), seed=1)):
        folder = tmp_path / str(number)
        folder.mkdir()
        found, why = intake.answer(case.data, folder)
        if (found is Answer.CLEAR) == case.spoilt:
            wrong.append((case.name, found, why))
    assert not wrong


# --------------------------------------------------------------------------------------------------------------------
# Labels


@pytest.mark.parametrize(
    ("labels", "kind"),
    [
        ({'=IF(C2>3,"pos","neg")': 80, '=IF(C3>3,"pos","neg")': 80}, DoubtKind.SPELLINGS),
        ({"pos": 100, "<b>pos</b>": 40, "neg": 120}, DoubtKind.SPELLINGS),
        ({"<b>pos</b>": 40, "<b>neg</b>": 40}, DoubtKind.SPELLINGS),
        ({"R&D": 100, "R&amp;D": 40, "HR": 120}, DoubtKind.SPELLINGS),
        ({"positive": 100, "**positive**": 40, "negative": 120}, DoubtKind.SPELLINGS),
        ({"pos": 100, "neg": 100, "pos?": 90, "neg??": 90}, DoubtKind.SPELLINGS),
        ({"négatif": 100, "negatif": 100, "positif": 100}, DoubtKind.SPELLINGS),
        ({"体育": 100, "财经": 100, "體育": 90, "財經": 90}, DoubtKind.SPELLINGS),
        ({"A": 100, "B": 100, "\N{CYRILLIC CAPITAL LETTER A}": 90}, DoubtKind.SPELLINGS),
        ({"1 - negative": 70, "3 - positive": 70, "negative": 80, "positive": 80}, DoubtKind.SPELLINGS),
        ({"Label: negative": 70, "Label: positive": 70, "negative": 80, "positive": 80}, DoubtKind.SPELLINGS),
        ({"color": 190, "size": 190, "colour": 18}, DoubtKind.SPELLINGS),
        ({"n\u00c3\u00a9gatif": 100, "positif": 100}, DoubtKind.BROKEN_TEXT),
        ({"neg (1)": 70, "neg (2)": 70, "pos (1)": 70, "pos (3)": 70}, DoubtKind.SCALE),
        ({"1h 10m": 30, "1h 20m": 30, "2h 5m": 30}, DoubtKind.SCALE),
        ({"1e-05": 90, "0.5": 90, "1.5e-3": 90}, DoubtKind.SCALE),
        ({"<python><pandas>": 60, "<python>": 90, "<numpy>": 90}, DoubtKind.JOINED_LABELS),
        ({"#food": 50, "#price": 50, "#food #price": 30}, DoubtKind.JOINED_LABELS),
        ({"ann@corp.example": 60, "bob@corp.example": 60, "li@corp.example": 60}, DoubtKind.PARTS),
        ({"10.0.0.1": 60, "10.0.0.2": 60, "10.0.0.3": 60}, DoubtKind.PARTS),
        ({"pos": 180, "neg": 180, "429 Too Many Requests": 12}, DoubtKind.NO_LABEL),
        ({"pos": 180, "neg": 180, "As an AI language model": 10}, DoubtKind.NO_LABEL),
        ({"A": 180, "B": 180, "tie/unclear": 20}, DoubtKind.NO_LABEL),
        ({"👍": 90, "👎": 90, "?": 9}, DoubtKind.NO_LABEL),
        ({"food": 70, "price": 70, "staff": 70, "food_price": 60, "price_staff": 60}, DoubtKind.JOINED_LABELS),
        ({f"data/{part}/{number}.txt": 9 for part in ("neg", "pos") for number in range(9)}, DoubtKind.PARTS),
        ({"neg": 156, "pos": 156, "-1": 8}, DoubtKind.NO_LABEL),
        ({"neg": 156, "pos": 156, "-100": 8}, DoubtKind.NO_LABEL),
        ({"0": 156, "1": 156, "-1": 8}, DoubtKind.NO_LABEL),
        ({"1": 60, "2": 60, "3": 60, "99": 20}, DoubtKind.NO_LABEL),
        ({"正面": 156, "负面": 156, "nan": 7}, DoubtKind.NO_LABEL),
        ({"正面": 100, "负面": 100, "未标注": 60}, DoubtKind.NO_LABEL),
        ({"gut": 100, "schlecht": 100, "(ohne Angabe)": 30}, DoubtKind.NO_LABEL),
        ({"A": 100, "B": 100, "?": 9}, DoubtKind.NO_LABEL),
        ({"1": 100, "2": 100, "3": 100, "offen": 9}, DoubtKind.NO_LABEL),
        ({"neg": 160, "pos": 160, "README": 3}, DoubtKind.RARE_LABEL),
        ({"neg": 160, "pos": 160, "postive": 1}, DoubtKind.RARE_LABEL),
        ({f"{tenth / 10:g}": 12 for tenth in range(0, 51, 2)}, DoubtKind.SCALE),
        ({f"{half / 2:g}": 40 for half in range(2, 11)}, DoubtKind.SCALE),
        ({"0,5": 40, "1": 40, "1,5": 40, "2": 40}, DoubtKind.SCALE),
        ({str(score): 3 for score in range(101)}, DoubtKind.SCALE),
        ({str(score): 20 for score in range(0, 101, 10)}, DoubtKind.SCALE),
        ({str(age): 1 + 40 * (20 - abs(age - 40)) for age in range(21, 60)}, DoubtKind.SCALE),
        ({f"2024-03-{day:02}": 10 for day in range(1, 9)}, DoubtKind.SCALE),
        ({"neg 0.5": 40, "neg 0.7": 40, "pos 0.5": 40, "pos 0.9": 40}, DoubtKind.SCALE),
        ({"['neg']": 40, "['pos']": 40, "['neg', 'food']": 40}, DoubtKind.JOINED_LABELS),
        ({"体育": 40, "财经": 40, "体育、财经": 20}, DoubtKind.JOINED_LABELS),
        ({"rot|blau": 40, "blau|gelb": 40, "gelb|rot": 40}, DoubtKind.JOINED_LABELS),
        ({"red": 40, "blue": 40, "red && blue": 20}, DoubtKind.JOINED_LABELS),
        ({"food": 40, "price": 40, "food and price": 20}, DoubtKind.JOINED_LABELS),
        ({"Essen": 40, "Preis": 40, "Essen und Preis": 20}, DoubtKind.JOINED_LABELS),
        ({"food": 40, "price": 40, "food & price": 20}, DoubtKind.JOINED_LABELS),
        ({"neg": 40, "pos": 40, "neg/pos": 20}, DoubtKind.JOINED_LABELS),
        ({"neg": 100, "pos": 100, "\\N": 15}, DoubtKind.NO_LABEL),
        ({str(year): 40 for year in range(2015, 2025)}, DoubtKind.SCALE),
        ({"neg": 100, "Neg": 60, "pos": 160}, DoubtKind.SPELLINGS),
        ({"ｎｅｇ": 60, "neg": 100, "pos": 160}, DoubtKind.SPELLINGS),
        ({"2D": 168, "3D": 98, "3D\u200b": 70}, DoubtKind.SPELLINGS),
        ({"4G": 100, "5G": 90, "'5G'": 40}, DoubtKind.SPELLINGS),
        ({"(spam)": 60, "spam": 100, "ham": 160}, DoubtKind.SPELLINGS),
        ({"very  good": 60, "very good": 60, "bad": 100}, DoubtKind.SPELLINGS),
        ({"neg": 100, "pos": 100, "neg?": 4}, DoubtKind.SPELLINGS),
        ({"0": 80, "1": 80, "neg": 80, "pos": 80}, DoubtKind.SPELLINGS),
        ({"neg": 240, "pos": 240, "negative": 60, "positive": 60}, DoubtKind.SPELLINGS),
        ({"negative": 300, "positive": 280, "postive": 20}, DoubtKind.SPELLINGS),
        ({"negative": 300, "positive": 280, "posltive": 20}, DoubtKind.SPELLINGS),
        ({"complaint": 290, "complaints": 24, "praise": 280}, DoubtKind.SPELLINGS),
        ({"'neg'": 240, "'pos'": 240}, DoubtKind.SPELLINGS),
        ({"yes": 100, "no": 100, "Y": 90, "N": 90}, DoubtKind.SPELLINGS),
        ({"正面": 100, "负面": 100, "正": 90, "负": 90}, DoubtKind.SPELLINGS),
        ({"2000s": 60, "２０００ｓ": 24, "1990s": 61}, DoubtKind.SPELLINGS),
        ({"5": 60, "5 stars": 24, "4": 61}, DoubtKind.SPELLINGS),
        ({"tensor(0)": 80, "tensor(1)": 80}, DoubtKind.SPELLINGS),
        ({"np.int64(0)": 80, "np.int64(1)": 80}, DoubtKind.SPELLINGS),
        ({"b'neg'": 80, "b'pos'": 80}, DoubtKind.SPELLINGS),
        ({"<Label.NEG: 0>": 80, "<Label.POS: 1>": 80}, DoubtKind.SPELLINGS),
        ({"gut": 100, "schlecht": 100, "#NV": 5}, DoubtKind.NO_LABEL),
        ({"bueno": 100, "malo": 100, "#¡VALOR!": 5}, DoubtKind.NO_LABEL),
        ({"спорт": 100, "наука": 100, "не размечено": 9}, DoubtKind.NO_LABEL),
        ({"dobry": 100, "zły": 100, "brak danych": 9}, DoubtKind.NO_LABEL),
        ({"좋음": 100, "나쁨": 100, "라벨 없음": 9}, DoubtKind.NO_LABEL),
        ({"tốt": 100, "xấu": 100, "không xác định": 9}, DoubtKind.NO_LABEL),
        ({"καλό": 100, "κακό": 100, "χωρίς ετικέτα": 9}, DoubtKind.NO_LABEL),
        ({"体育": 100, "财经": 100, "其他/未知": 9}, DoubtKind.NO_LABEL),
        ({"known": 100, "unknown": 100, "missing": 90}, DoubtKind.NO_LABEL),
        ({"neg": 60, "pos": 60, "pos#neg": 20}, DoubtKind.JOINED_LABELS),
        ({"black": 90, "white": 90, "black and white": 20}, DoubtKind.JOINED_LABELS),
        ({f"{hour:02}:30": 20 for hour in range(9)}, DoubtKind.SCALE),
        ({f"{hour}:15 {half}": 20 for hour in (1, 2, 3) for half in ("AM", "pm")}, DoubtKind.SCALE),
        ({f"{day}-Feb": 20 for day in range(1, 5)}, DoubtKind.SCALE),
        ({f"März {day}, 2024": 20 for day in range(1, 5)}, DoubtKind.SCALE),
        ({str(1393545600 + day): 20 for day in range(9)}, DoubtKind.SCALE),
        ({"bon": 100, "mauvais": 100, "sans étiquette": 9}, DoubtKind.NO_LABEL),
        ({"好": 100, "坏": 100, "未打标签": 9}, DoubtKind.NO_LABEL),
        ({"good": 100, "bad": 100, "not_labeled_yet": 9}, DoubtKind.NO_LABEL),
        ({"0": 100, "1": 100, "2": 90, "255": 9}, DoubtKind.NO_LABEL),
        ({"news": 50, "sport": 50, "news\nsport": 40}, DoubtKind.JOINED_LABELS),
        ({f"2024-W{week:02}": 20 for week in range(1, 6)}, DoubtKind.SCALE),
        ({f"Q{quarter} 2023": 20 for quarter in range(1, 5)}, DoubtKind.SCALE),
        ({f"2023{month:02}": 20 for month in range(1, 13)}, DoubtKind.SCALE),
        ({f"{place}.25,{place}.5": 20 for place in range(1, 6)}, DoubtKind.SCALE),
        ({f"@user_{letter}": 20 for letter in "abcdefghijkl"}, DoubtKind.PARTS),
        ({f"{2 * chr(letter)}xy{letter}": 20 for letter in range(97, 110)}, DoubtKind.PARTS),
        ({"train": 80, "test": 80}, DoubtKind.PARTS),
        ({"训练集": 80, "测试集": 80}, DoubtKind.PARTS),
        ({"neg": 80, "pos": 80, "I do not know what to make of this one, please ask somebody.": 40}, DoubtKind.PARTS),
    ],
    ids=str,
)
def test_labels_that_are_no_classes_are_doubtful(labels: dict[str, int], kind: DoubtKind) -> None:
    """Each for one reason, with the sentence's numbers and a row that shows it."""
    verdict = of_labels(labels)
    assert kinds(verdict) == [kind]
    assert any(character.isdigit() for character in verdict.doubts[0].what) or kind is DoubtKind.PARTS
    assert len(verdict.examples) == min(3, len(labels))
    assert not verdict.doubts[0].labels or verdict.examples[0].label == verdict.doubts[0].labels[0]


@pytest.mark.parametrize(
    "labels",
    [
        {"1": 3, "2": 10, "3": 40, "4": 100, "5": 200},
        {str(stars): 30 for stars in range(11)},
        {"0": 100, "1": 5000},
        {"ham": 870, "spam": 130},
        {"no": 1980, "yes": 20},
        {f"intent_{number}": 4 for number in range(150)},
        {str(number): 5 for number in range(150)},
        {f"class {chr(65 + number)}": 2 + number % 29 for number in range(26)},
        {
            str(code): 40
            for code in (10, 40, 50, 60, 1140, 1160, 1280, 1300, 2060, 2220, 2280, 2403, 2462, 2522, 2582, 2705, 2905)
        },
        {"😀": 50, "😡": 50, "❤️": 50},
        {"true": 50, "false": 50},
        {"DE": 50, "NA": 50, "US": 50},
        {"-1": 100, "0": 100, "1": 100},
        {"+1": 100, "-1": 100},
        {"FAVOR": 100, "AGAINST": 100, "NONE": 90},
        {"World": 50, "Sports": 50, "Business": 50, "Sci/Tech": 50},
        {"sport/tennis": 50, "sport/golf": 50, "news/world": 50},
        {"Arts & Culture": 50, "Food & Drink": 50, "Home & Garden": 50, "Arts": 50},
        {"Arts and Culture": 50, "Food and Drink": 50, "Home and Garden": 50, "Arts": 50, "Brand": 50},
        {"black or white": 50, "black": 50},
        {"black": 50, "white": 50, "black and white": 45},
        {"known": 50, "unknown": 45},
        {"sure": 50, "not sure": 45},
        {"labeled": 50, "unlabeled": 45},
        {"yes": 50, "no": 50, "undecided": 40},
        {"10-K": 50, "10-Q": 40, "8-K": 40},
        {"5G": 50, "4G": 40, "LTE": 40},
        {"Label.NEG": 50, "Label.POS": 50},
        {"f(x)": 50, "g": 50},
        {"#maga": 50, "#RESIST": 50, "#MAGA2": 50},
        {"morning": 50, "May": 50, "noon": 50},
        {"@apple": 50, "@google": 50},
        {f"intent{number}": 9 for number in range(20)},
        {"MP3": 50, "PS4": 50, "H2O": 50},
        {"1956": 50, "2001": 50, "2044": 50},
        {"2001": 50, "2002": 50, "2003": 50, "2010": 50},
        {"typical": 200, "atypical": 20},
        {"affect": 60, "effect": 50},
        {"car": 60, "cargo": 50, "van": 50},
        {"sport": 60, "sports betting": 50, "news": 50, "newsletter": 50},
        {"c": 50, "c++": 50, "c#": 50},
        {"A+": 50, "A": 50, "B": 50},
        {"0-12": 50, "13-17": 50, "65+": 50},
        {"劳动人事争议仲裁与社会保险": 50, "房屋租赁与物业服务合同纠纷": 50},
        {"Statement": 50, "Statement (opinion)": 50},
        {str(code): 50 for code in range(100, 117) if code not in (105, 111)},
        {"true": 50, "false": 50, "unverified": 50, "non-rumor": 50},
        {"yes": 50, "no": 50, "abstain": 50},
        {"A*": 50, "A": 50, "B": 50},
        {"<1h": 50, "1-4h": 50, "4-8h": 50, ">8h": 50},
        {"card": 50, "arrival": 50, "card_arrival": 50, "top_up": 50},
        {"News/World/Asia": 50, "News/World/Europe": 50, "Sport/Ball/Tennis": 50},
        {"+": 50, "-": 50, "0": 50},
        {"resume": 50, "rocket": 50, "résumé writing": 50},
        {"ma": 50, "má": 50},
        {"Ep. 1": 50, "Ep. 2": 50, "Vol. 1": 50},
        {"sub: a": 50, "dom: b": 50, "a": 50},
        {"体育": 50, "體操": 50, "财经": 50},
        {"10.1": 50, "a.b": 50, "1.2.3": 50},
        {"benign": 50, "malignant": 50, "carcinoma in situ of the breast": 30},
        {"comp.sys.mac": 50, "rec.autos": 50, "sci.space": 50, "sci.med": 50},
    ],
    ids=str,
)
def test_labels_that_only_look_odd_are_clear(labels: dict[str, int]) -> None:
    assert of_labels(labels).answer is Answer.CLEAR


def test_where_reading_stopped_a_class_of_few_rows_says_nothing() -> None:
    """Files are often sorted by label."""
    assert kinds(of_labels({"a": 300, "b": 300, "c": 2})) == [DoubtKind.RARE_LABEL]
    unread = of_labels({"a": 300, "b": 300, "c": 2}, complete=False)
    assert (unread.answer, unread.complete) == (Answer.CLEAR, False)


def test_the_labels_that_count_settle_it(tmp_path: Path) -> None:
    """Rows with others are left out and counted; a name that no row has is refused with those that there are."""
    file = tmp_path / "a.csv"
    rows = [f"the room number {place},{('neg', 'pos', '-1')[place % 3]}" for place in range(90)]
    verdict = judged(file, "text,label\n" + "\n".join(rows) + "\n")
    assert verdict.doubts[0].settle == ("task.labels=neg,pos",)
    summary = check_data(str(file), labels=["pos", "neg"], budget_s=60)
    assert (list(summary.labels), summary.rows, dict(summary.other_labels)) == (["pos", "neg"], 60, {"-1": 30})
    assert judge(summary.evidence).answer is Answer.CLEAR
    with pytest.raises(InputError, match=r"task\.labels names 'positive', which no row .* it has '-1', 'neg', 'pos'"):
        check_data(str(file), labels=["neg", "positive"], budget_s=60)
    with pytest.raises(InputError, match=r"No row .* has one of the labels 'a', 'b' \(task\.labels\)"):
        check_data(str(file), labels=["a", "b"], budget_s=60)


@given(
    st.dictionaries(st.text(max_size=6) | st.sampled_from(["neg", "pos", "-1", "0", "nan"]), st.integers(1, 40), max_size=8),
    st.randoms(use_true_random=False),
)
def test_the_order_of_rows_does_not_matter_and_every_doubt_has_its_sentence(
    counts: dict[str, int], draw: random.Random
) -> None:
    rows = [(f"text {place}", name) for name, count in counts.items() for place in range(count)]
    shuffled = draw.sample(rows, len(rows))
    one, other = judge(evidence_of(rows)), judge(evidence_of(shuffled))
    assert kinds(one) == kinds(other)
    for doubt in one.doubts:
        assert doubt.what.endswith((".", "?"))
        assert all(setting.startswith("task.") for setting in doubt.settle)
    assert not one.unsettled(list(DoubtKind))


# --------------------------------------------------------------------------------------------------------------------
# Columns and headers


def table(names: str, row: Callable[[int], str], rows: int = 120) -> str:
    return f"{names}\n" + "".join(row(place) + "\n" for place in range(rows))


SAID = ["the room was very clean", "we waited for the food", "staff of the house were kind", "never again in this place"]


def said(place: int) -> str:
    return f"{SAID[place % 4]} and number {place} too"


def test_a_second_text_is_asked_about_until_it_is_used(tmp_path: Path) -> None:
    content = table(
        "premise,hypothesis,label", lambda n: f"{said(n)} {said(n)},they said {SAID[n % 3]} {n},{('yes', 'no', 'maybe')[n % 3]}"
    )
    verdict = judged(tmp_path / "a.csv", content)
    settle = ("task.text_pair=hypothesis", "task.text=premise")
    assert [(d.kind, d.settle) for d in verdict.doubts] == [(DoubtKind.SECOND_TEXT, settle)]
    paired = judged(tmp_path / "a.csv", content, text_pair="hypothesis")
    assert paired.answer is Answer.CLEAR
    assert paired.examples[0].text_pair is not None
    chinese = table(
        "标题,内容,类别",
        lambda n: f"这家酒店的早餐真不错{n},房间很干净服务态度也很好我们下次还会再来的{n},{'好评' if n % 2 else '差评'}",
    )
    assert kinds(judged(tmp_path / "b.csv", chinese)) == [DoubtKind.SECOND_TEXT]


def test_whoever_names_the_text_is_told_of_the_second_one_and_not_asked(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(table("title,body,label", lambda n: f"{said(n)},{said(n)} {said(n)},{'ab'[n % 2]}"), encoding="utf-8")
    summary = check_data(str(file), text="body", budget_s=60)
    assert judge(summary.evidence).answer is Answer.CLEAR
    assert "Column 'title' holds text as well" in summary.notes[0]
    assert check_data(str(file), text="body", text_pair="title", budget_s=60).notes == ()


def test_rows_that_somebody_has_rejected_are_asked_about(tmp_path: Path) -> None:
    """Programs for labelling export what was refused as well, with the label that was wrong."""
    verdicts = ("accept", "accept", "reject", "ignore")
    content = table("text,label,answer", lambda n: f"{said(n)},{'pos' if n % 3 else 'neg'},{verdicts[n % 4]}")
    verdict = judged(tmp_path / "a.csv", content)
    assert kinds(verdict) == [DoubtKind.REJECTED_ROWS]
    assert "Column 'answer' says 'ignore' or 'reject' of 60 of 120 rows" in verdict.doubts[0].what
    assert judged(tmp_path / "a.csv", content.replace("reject", "accept").replace("ignore", "accept")).answer is Answer.CLEAR


@pytest.mark.parametrize(
    ("column", "train", "other", "says"),
    [
        ("split", "train", "test", "'test' of 300 of 1,500 rows"),
        ("subset", "训练集", "测试集", "'测试集' of 300"),
        ("is_valid", "False", "True", "'valid true' of 300"),
    ],
)
def test_rows_of_another_part_are_asked_about_wherever_they_stand(
    tmp_path: Path, column: str, train: str, other: str, says: str
) -> None:
    """They come behind the rows in which columns are looked for, as parts that were put together do."""
    content = table(f"text,label,{column}", lambda n: f"{said(n)},{'ab'[n % 2]},{train if n < 1200 else other}", 1500)
    verdict = judged(tmp_path / "a.csv", content)
    assert kinds(verdict) == [DoubtKind.REJECTED_ROWS]
    assert says in verdict.doubts[0].what
    assert judged(tmp_path / "a.csv", content.replace(other, train)).answer is Answer.CLEAR


def test_labels_that_are_the_lengths_of_their_texts_are_doubtful() -> None:
    rows = [(f"the room was {'very ' * (n % 5)}fine {n}", str(n % 5 + 5)) for n in range(100)]
    assert kinds(judge(evidence_of(rows))) == [DoubtKind.SCALE]
    assert judge(evidence_of([(text, label if n % 2 else "7") for n, (text, label) in enumerate(rows)])).answer is Answer.CLEAR


def test_a_column_of_very_many_classes_is_found_beside_one_that_is_called_text(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text(table("text,intent", lambda n: f"{said(n)},intent_{n % 150}", 900), encoding="utf-8")
    assert len(check_data(str(file), budget_s=60).labels) == 150
    answers = table("text,answer,intent", lambda n: f"{said(n)},{'reject' if n % 4 else 'accept'},intent_{n % 150}", 900)
    assert kinds(judged(file, answers)) == [DoubtKind.REJECTED_ROWS]


def test_columns_of_names_dates_and_copies_are_no_second_text(tmp_path: Path) -> None:
    content = table(
        "author,date,TEXT_lower,url,text,label",
        lambda n: f"Ann Mary Smith {n},2024-01-02,{said(n).upper()},http://a.org/{n},{said(n)},{'good' if n % 2 else 'bad'}",
    )
    assert judged(tmp_path / "a.csv", content).answer is Answer.CLEAR


def test_another_column_that_fits_is_asked_about_unless_one_is_named(tmp_path: Path) -> None:
    content = table(
        "text,Stance,Sentiment", lambda n: f"{said(n)},{('favor', 'against', 'neither')[n % 3]},{'pos' if n % 2 else 'neg'}"
    )
    verdict = judged(tmp_path / "a.csv", content)
    assert [(d.kind, d.settle) for d in verdict.doubts] == [
        (DoubtKind.LABEL_COLUMN, ("task.label=Sentiment", "task.label=Stance"))
    ]
    assert judged(tmp_path / "a.csv", content, label="Sentiment").answer is Answer.CLEAR
    same = table("text,label,label_text", lambda n: f"{said(n)},{n % 2},{'pos' if n % 2 else 'neg'}")
    assert judged(tmp_path / "b.csv", same).answer is Answer.CLEAR, "the same in other words"


def test_names_of_files_that_could_be_labels_are_asked_about_where_no_column_is_called_label(tmp_path: Path) -> None:
    part = table("text,lang", lambda n: f"{said(n)},{'en' if n % 2 else 'de'}", 80)
    for name in ("pos.csv", "neg.csv"):
        (tmp_path / name).write_text(part, encoding="utf-8")
    verdict = judge(check_data(str(tmp_path), budget_s=60).evidence)
    assert [(doubt.kind, doubt.settle) for doubt in verdict.doubts] == [(DoubtKind.LABEL_COLUMN, ("task.label=lang",))]
    assert "'neg', 'pos'" in verdict.doubts[0].what
    assert judge(check_data(str(tmp_path), label="lang", budget_s=60).evidence).answer is Answer.CLEAR
    for name in ("london.csv", "paris.csv"):
        (tmp_path / "cities").mkdir(exist_ok=True)
        (tmp_path / "cities" / name).write_text(part.replace("lang", "Star rating"), encoding="utf-8")
    assert judge(check_data(str(tmp_path / "cities"), budget_s=60).evidence).answer is Answer.CLEAR
    for name in ("pos.csv", "neg.csv"):
        (tmp_path / name).rename(tmp_path / name.replace("pos", "part-1").replace("neg", "part-2"))
    assert judge(check_data(str(tmp_path), budget_s=60).evidence).answer is Answer.CLEAR, "shards"


def test_a_header_among_the_rows_is_named_by_its_line(tmp_path: Path) -> None:
    part = table("text,spam", lambda n: f"{said(n)},{'spam' if n % 3 else 'ham'}", 80)
    verdict = judged(tmp_path / "a.csv", part + part.replace("text,spam", "Text,SPAM"))
    assert verdict.doubts[0].kind is DoubtKind.HEADER
    assert "line 82 repeats the names of the columns (text, spam)" in verdict.doubts[0].what
    with pytest.raises(InputError, match="line 82 repeats the first line"):
        judged(tmp_path / "a.csv", part + part)
    with pytest.raises(InputError, match="line 82 repeats the first line"):
        judged(tmp_path / "a.csv", part + "\ufeff" + part)


def test_a_first_line_that_is_a_row_is_refused_and_a_label_named_like_its_column_is_not(tmp_path: Path) -> None:
    content = table("text,spam", lambda n: f"{said(n)},{'spam' if n % 3 else 'ham'}")
    assert judged(tmp_path / "a.csv", content).answer is Answer.CLEAR
    with pytest.raises(InputError, match="looks like a row"):
        judged(tmp_path / "a.csv", content.split("\n", 1)[1])


def test_several_columns_of_0_and_1_are_offered_to_be_learnt_as_several_labels_and_then_clear(tmp_path: Path) -> None:
    draw = random.Random(1)
    cells = [draw.choices(["0", "1"], k=3) for _ in range(120)]
    content = table("text,toxic,threat,insult,split", lambda n: f"{said(n)},{','.join(cells[n])},{'ab'[n % 2]}")
    with pytest.raises(NoTaskError, match=rf"3 columns of 0 and 1 .* learn them all, .*: --set {SEVERAL}"):
        judged(tmp_path / "a.csv", content)
    summary = check_data(str(tmp_path / "a.csv"), problem_type="multi_label_classification", budget_s=60)
    wanted = {name: sum(row[place] == "1" for row in cells) for place, name in enumerate(("toxic", "threat", "insult"))}
    assert (summary.columns.switches, summary.labels) == (tuple(wanted), wanted)
    verdict = judge(summary.evidence)
    assert verdict.answer is Answer.CLEAR
    assert [shown.label.split("|") for shown in verdict.examples if shown.label]
    two = check_data(
        str(tmp_path / "a.csv"), labels=["insult", "toxic"], problem_type="multi_label_classification", budget_s=60
    )
    assert list(two.labels.items()) == [(name, wanted[name]) for name in ("insult", "toxic")]
    assert two.rows == 120, "a text with none of them is one without a label"


@pytest.mark.parametrize(
    ("head", "row", "words"),
    [
        (
            "text,a,b",
            lambda n: f"{said(n)},{n % 2},{-1 if n == 1000 else n % 3 % 2}",
            "line 1002: '-1' in column 'b' is neither",
        ),
        (
            "text,a,b",
            lambda n: f"{said(n)},{n % 2},{'' if n == 7 else n % 3 % 2}",
            "line 9: '' in column 'b' is neither 0 nor 1",
        ),
        ("text,a,b,c", lambda n: f"{said(n)},{n % 2},{n % 3 % 2},0", "No row .* 1 in column 'c', .* task.labels=a,b"),
        ("text,a,b,label", lambda n: f"{said(n)},{n % 2},{n % 3 % 2},x|y", "task.label=label, or .* task.labels=a,b"),
        (
            "text,label",
            lambda n: f'{said(n)},"[0, 1, {n % 2}]"',
            "line 2: the list in column 'label' has 0 or 1 for each label",
        ),
    ],
)
def test_what_is_no_switch_is_refused_with_what_to_do(head: str, row: Callable[[int], str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        judged(tmp_path / "a.csv", table(head, row, rows=1100), problem_type="multi_label_classification")


def test_of_several_labels_those_that_are_named_are_learnt(tmp_path: Path) -> None:
    content = table("text,labels", lambda n: f"{said(n)},{'|'.join(['food', 'price', 'staff'][n % 3 : n % 3 + 2])}")
    (tmp_path / "a.csv").write_text(content, encoding="utf-8")
    summary = check_data(
        str(tmp_path / "a.csv"), labels=["price", "food"], problem_type="multi_label_classification", budget_s=60
    )
    assert (list(summary.labels), summary.rows) == (["price", "food"], len(content.splitlines()) - 1)
    with pytest.raises(InputError, match=r"task\.labels names 'dear', which no row of"):
        check_data(str(tmp_path / "a.csv"), labels=["dear", "food"], problem_type="multi_label_classification", budget_s=60)


def test_weights_of_labels_that_are_not_there_are_refused() -> None:
    refuse_unknown_weights({"a": 2.0}, ["a", "b"])
    with pytest.raises(InputError, match="names 'neu', and the labels are 'a', 'b'"):
        refuse_unknown_weights({"a": 2.0, "neu": 1.0}, ["a", "b"])


# --------------------------------------------------------------------------------------------------------------------
# Texts and evaluation


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("http://www.imdb.com/title/tt0064354/usercomments", Look.LINK),
        ("data/images/00017.jpg", Look.LINK),
        ("data/img_17.jpg", Look.LINK),
        ("and/or", Look.LANGUAGE),
        ("/home/ann/my corpus/pos/12_7.txt", Look.LINK),
        ("ann@example.org", Look.ID),
        ("d41d8cd98f00b204e9800998ecf8427e", Look.ID),
        ("user_00123", Look.ID),
        ("VGhpcyBpcyBub3QgYSB0ZXh0IGF0IGFsbA==", Look.DATA),
        ("data:image/png;base64,iVBORw0KGgo", Look.DATA),
        ("['great', 'food']", Look.DATA),
        ("0.12, 3.40, 5.60", Look.NUMBER),
        ("2024-01-02 12:30", Look.NUMBER),
        ("房间很干净", Look.LANGUAGE),
        ("Müller", Look.LANGUAGE),
        ("look at this https://t.co/a1b2c3", Look.LANGUAGE),
        ("ACGTACGTTTGACCATGACCATTTGACA", Look.LANGUAGE),
        ("def f(x):\n    return x + 1", Look.LANGUAGE),
        ("!!!", Look.LANGUAGE),
        ("ห้องสะอาดพนักงานเป็นมิตร", Look.LANGUAGE),
    ],
)
def test_what_a_text_looks_like(text: str, found: Look) -> None:
    assert look(text) is found


@given(st.text(min_size=1))
def test_anything_looks_like_something(text: str) -> None:
    assert isinstance(look(text), Look)
    assert isinstance(is_prose([text] * 9), bool)


def test_texts_that_are_links_are_doubtful_of_all_classes_and_of_one() -> None:
    links = [(f"http://www.imdb.com/title/tt{n}/", "urls") for n in range(60)]
    reviews = [(said(n), ("neg", "pos")[n % 2]) for n in range(120)]
    assert [(d.kind, d.settle) for d in judge(evidence_of(links + reviews)).doubts] == [
        (DoubtKind.NO_LANGUAGE, ("task.labels=neg,pos",))
    ]
    assert kinds(judge(evidence_of([(text, ("a", "b")[n % 2]) for n, (text, _) in enumerate(links)]))) == [
        DoubtKind.NO_LANGUAGE
    ]


@pytest.mark.parametrize("encoding", ["latin-1", "cp1252"])
def test_characters_that_a_wrong_encoding_has_broken_are_doubtful(encoding: str) -> None:
    right = [(f"Frühstück für {n} Gäste, à la carte, “naïve” – {SAID[n % 4]}", ("a", "b")[n % 2]) for n in range(60)]
    assert judge(evidence_of(right)).answer is Answer.CLEAR
    broken = [(text.encode().decode(encoding, "ignore"), label) for text, label in right[:6]] + right[6:]
    assert kinds(judge(evidence_of(broken))) == [DoubtKind.BROKEN_TEXT]
    assert "about 10 % of the texts are broken" in judge(evidence_of(broken)).doubts[0].what
    assert "(x.csv, line 2)" in judge(evidence_of(broken)).doubts[0].what
    lost = [(text.replace("ü", "\ufffd"), label) for text, label in right]
    assert kinds(judge(evidence_of(lost))) == [DoubtKind.BROKEN_TEXT]
    assert judge(evidence_of([*right, lost[0]])).answer is Answer.CLEAR, "one of sixty, as the net has it"


def test_texts_that_are_their_label_teach_nothing() -> None:
    rows = [(("neg", "Pos ")[n % 2], ("neg", "pos")[n % 2]) for n in range(40)]
    assert kinds(judge(evidence_of(rows))) == [DoubtKind.NO_LANGUAGE]
    assert "are the row's label and nothing else" in judge(evidence_of(rows)).doubts[0].what


def test_rows_of_fields_in_text_files_are_parts() -> None:
    rows = [(f"{said(n)}\t{n % 10}", ("train", "dev")[n % 2]) for n in range(80)]
    assert kinds(judge(evidence_of(rows))) == [DoubtKind.PARTS]


def test_a_text_with_several_labels_is_doubtful() -> None:
    """A row for each label of a text, as tables that were multi-label have it; a few contradictions are noise."""
    rows = [(said(n // 2), ("food", "price", "room")[n % 3]) for n in range(120)]
    assert kinds(judge(evidence_of(rows))) == [DoubtKind.CONTRADICTIONS]
    noisy = [(said(n), ("a", "b")[n % 2]) for n in range(120)]
    assert judge(evidence_of(noisy + [(text, "a") for text, _ in noisy[:10]])).answer is Answer.CLEAR


@pytest.mark.parametrize(("shared", "doubts"), [(60, [DoubtKind.EVALUATION]), (40, [DoubtKind.EVALUATION]), (8, [])])
def test_evaluation_data_that_are_trained_on_are_doubtful_if_they_are_most(shared: int, doubts: list[DoubtKind]) -> None:
    train = [(said(n), ("a", "b")[n % 2]) for n in range(200)]
    fresh = [(said(1000 + n), ("a", "b")[n % 2]) for n in range(60 - shared)]
    assert kinds(judge(evidence_of(train), evidence_of(train[:shared] + fresh))) == doubts


def test_evaluation_texts_in_other_letters_are_the_same_ones() -> None:
    train = [(f"{said(n).capitalize()}.", ("a", "b")[n % 2]) for n in range(200)]
    copies = [(text.lower().replace(" ", "  ").rstrip("."), label) for text, label in train[:60]]
    assert kinds(judge(evidence_of(train), evidence_of(copies))) == [DoubtKind.EVALUATION]


def test_evaluation_data_of_one_label_tell_nothing_of_the_others() -> None:
    train = [(said(n), ("a", "b")[n % 2]) for n in range(200)]
    assert kinds(judge(evidence_of(train), evidence_of([(said(999 + n), "a") for n in range(50)]))) == [DoubtKind.EVALUATION]


def test_what_is_remembered_of_texts_is_bounded_and_still_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of more texts than fit a share is remembered, the same of training and evaluation data."""
    monkeypatch.setattr(evidence_module, "_MOST_TEXTS", 256)
    train = evidence_of([(said(n), ("a", "b")[n % 2]) for n in range(5000)])
    assert len(train.texts) <= 256
    half = evidence_of([(said(n), ("a", "b")[n % 2]) for n in range(4000, 6000)])
    assert 0.35 < half.share_shared(train) < 0.65


# --------------------------------------------------------------------------------------------------------------------
# What is learnt besides classes


REGRESSION = "task.problem_type=regression"


def test_numbers_are_offered_to_be_learnt_as_numbers_and_then_clear(tmp_path: Path) -> None:
    for place, of_row in enumerate((lambda n: f"{n % 7 / 2}", lambda n: f"{n / 3:.3f}", lambda n: str(n % 41 + 5))):
        file = tmp_path / f"{place}.csv"
        content = table("text,stars", lambda n, of_row=of_row: f"{said(n)},{of_row(n)}")  # type: ignore[misc]
        try:
            offered = str([doubt.settle for doubt in judged(file, content, label="stars").doubts])
        except InputError as error:
            offered = str(error)
        assert REGRESSION in offered
        assert judged(file, content, problem_type="regression").answer is Answer.CLEAR
    with pytest.raises(InputError, match=r"To learn 'stars' as a number: --set task\.problem_type=regression"):
        judged(tmp_path / "1.csv", (tmp_path / "1.csv").read_text())


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (lambda n: f"{said(n)},{'3 stars' if n == 7 else n}", r"line 9: '3 stars' in column 'stars' is no number"),
        (lambda n: f"{said(n)},{'nan' if n == 7 else n}", "line 9: 'nan' in column 'stars' is no number"),
        (lambda n: f"{said(n)},{'' if n == 7 else n}", "line 9 has no label in column 'stars'"),
        (lambda n: f"{said(n)},4", "All numbers in column 'stars' of .* are 4, so there is nothing to learn"),
    ],
)
def test_what_is_no_number_is_refused_by_file_and_line(row: Callable[[int], str], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words):
        judged(tmp_path / "a.csv", table("text,stars", row), label="stars", problem_type="regression")


def test_labels_are_not_chosen_among_numbers(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"task\.labels chooses among labels, .* is regression"):
        judged(
            tmp_path / "a.csv", table("text,stars", lambda n: f"{said(n)},{n}"), labels=["1", "2"], problem_type="regression"
        )  # type: ignore[arg-type]


SEVERAL = "task.problem_type=multi_label_classification"


@pytest.mark.parametrize("sign", ["|", ";", ", ", "、"])
def test_joined_labels_are_offered_to_be_learnt_as_several_and_then_clear(sign: str, tmp_path: Path) -> None:
    names = ["food", "price", "staff"]
    content = table("text,labels", lambda n: f'{said(n)},"{sign.join(names[n % 3 : n % 3 + 1 + n % 2])}"')
    (doubt,) = judged(tmp_path / "a.csv", content).doubts
    assert (doubt.kind, doubt.settle) == (DoubtKind.JOINED_LABELS, (SEVERAL,))
    summary = check_data(str(tmp_path / "a.csv"), problem_type="multi_label_classification", budget_s=60)
    assert list(summary.labels) == names
    assert sum(summary.labels.values()) > summary.rows
    assert judge(summary.evidence).answer is Answer.CLEAR


@pytest.mark.parametrize(
    ("cell", "labels"),
    [
        ("a|b", ("a", "b")),
        ("a, b ;a", ("a", "b")),
        ("['a', 'b c']", ("a", "b c")),
        ('["a, b", "c"]', ("a, b", "c")),
        ("['a' 'b']", ("a", "b")),
        ("[1, 2]", ("1", "2")),
        ("[]", ()),
        ("", ()),
        ("好、坏", ("好", "坏")),
    ],
)
def test_several_labels_are_read_of_a_cell(cell: str, labels: tuple[str, ...]) -> None:
    assert several_labels(cell) == labels
