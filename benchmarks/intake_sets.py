"""Data sets as people have them, generated: clean families, and the ways in which they are spoilt. All follows from a seed."""

# ruff: noqa: E501, SIM905, ARG001 - lists of words, and ways of spoiling that draw no lots

from __future__ import annotations

import base64
import json
import random
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

Rows = list[tuple[str, str]]


@dataclass
class DataSet:
    """A table that is written as a file or folder, and how it is named to `start`."""

    rows: Rows
    """Text and label."""
    names: tuple[str, str] = ("text", "label")
    more: dict[str, list[str]] = field(default_factory=dict)
    """Other columns."""
    form: str = "csv"
    evaluation: Rows | None = None
    text_pair: str | None = None
    preamble: bool = True
    """Whether the columns are named in the first line."""

    def labels(self) -> Counter[str]:
        return Counter(label for _, label in self.rows)

    def labelled(self, label_of: Callable[[int, str], str]) -> DataSet:
        return replace(self, rows=[(text, label_of(place, label)) for place, (text, label) in enumerate(self.rows)])

    def with_texts(self, text_of: Callable[[], str]) -> DataSet:
        return replace(self, rows=[(text_of(), label) for _, label in self.rows])


# --------------------------------------------------------------------------------------------------------------------
# Texts

_WORDS = {
    "en": "the room was clean and staff friendly but food cold we waited long for service would not come back again great view from "
    "window price fair breakfast terrible really loved this place my phone broke after two days battery lasts forever screen",
    "de": "das zimmer war sauber und die leute freundlich aber essen kalt wir haben lange gewartet nie wieder tolle aussicht vom "
    "fenster preis gut frühstück schrecklich ich liebe diesen ort akku hält ewig bildschirm kaputt schnell geliefert",
    "es": "la habitación estaba limpia y el personal amable pero comida fría esperamos mucho no volvería gran vista desde ventana "
    "precio justo desayuno terrible me encanta este lugar batería dura pantalla rota llegó rápido",
    "fr": "la chambre était propre et le personnel aimable mais repas froid nous avons attendu longtemps jamais plus belle vue sur "
    "mer prix correct petit déjeuner affreux j'adore cet endroit batterie écran cassé livré vite",
    "ru": "номер был чистый и персонал вежливый но еда холодная мы долго ждали больше не приедем отличный вид из окна цена хорошая "
    "завтрак ужасный люблю это место батарея экран сломан быстро привезли",
    "ar": "كانت الغرفة نظيفة والموظفون لطفاء لكن الطعام بارد انتظرنا طويلا لن نعود منظر رائع من النافذة السعر جيد الفطور سيئ أحب هذا المكان",
    "hi": "कमरा साफ था और कर्मचारी अच्छे थे लेकिन खाना ठंडा हमने बहुत इंतज़ार किया फिर नहीं आएंगे खिड़की से सुंदर दृश्य दाम ठीक नाश्ता खराब",
    "tr": "oda temizdi ve personel güler yüzlüydü ama yemek soğuktu çok bekledik bir daha gelmeyiz manzara harika fiyat uygun kahvaltı kötü",
    "ko": "방은 깨끗했고 직원은 친절했지만 음식은 차가웠다 오래 기다렸다 다시는 오지 않겠다 창문 전망이 훌륭하다 가격은 적당하다 아침은 별로였다",
    "vi": "phòng sạch sẽ và nhân viên thân thiện nhưng đồ ăn nguội chúng tôi đợi lâu không quay lại cảnh đẹp giá hợp lý bữa sáng tệ",
}  # fmt: skip
_WIDE = {
    "zh": "房间 很干净 服务 态度 不错 但是 早餐 太差 等了 很久 再也 不会 来了 风景 非常 漂亮 价格 合理 屏幕 坏了 电池 耐用 物流 很快 客服 推荐 质量 一般",
    "ja": "部屋は きれいで スタッフも 親切でした しかし 料理が 冷たくて 長く 待ちました もう 行きません 眺めが 最高 値段は 普通 朝食が ひどい",
}  # fmt: skip
_LANGUAGES = [*_WORDS, *_WIDE]


def _sentence(draw: random.Random, language: str = "en", least: int = 5, most: int = 24) -> str:
    if language in _WIDE:
        return "".join(draw.choices(_WIDE[language].split(), k=draw.randint(max(3, least // 2), most // 2))) + draw.choice(
            ["。", "！", ""]
        )
    words = draw.choices(_WORDS[language].split(), k=draw.randint(least, most))
    if draw.random() < 0.3 and len(words) > 6:
        words[3] += ","
    text = " ".join(words)
    return (text[:1].upper() + text[1:] if draw.random() < 0.7 else text) + draw.choice([".", "!", "", "?"])


def _plain(
    draw: random.Random,
    labels: list[str],
    rows: int | None = None,
    language: str | None = None,
    weights: list[float] | None = None,
) -> DataSet:
    language = language or draw.choice(_LANGUAGES)
    count = rows or draw.randint(200, 500)
    given = draw.choices(labels, weights, k=count) if weights else [labels[place % len(labels)] for place in range(count)]
    draw.shuffle(given)
    return DataSet(
        [(_sentence(draw, language), label) for label in given], form=draw.choice(["csv", "tsv", "jsonl", "semicolons"])
    )


def _fixed(draw: random.Random, counts: dict[str, int], language: str | None = None) -> DataSet:
    given = [label for label, count in counts.items() for _ in range(count)]
    draw.shuffle(given)
    language = language or draw.choice(_LANGUAGES)
    return DataSet([(_sentence(draw, language), label) for label in given], form=draw.choice(["csv", "tsv", "jsonl"]))


# --------------------------------------------------------------------------------------------------------------------
# Clean families

Family = Callable[[random.Random], DataSet]
CLEAN: dict[str, Family] = {}
SPOILT: dict[str, Callable[[random.Random, DataSet], DataSet | None]] = {}


def clean(family: Family) -> Family:
    CLEAN[family.__name__.lstrip("_")] = family
    return family


def spoils(way: Callable[[random.Random, DataSet], DataSet | None]) -> Callable[[random.Random, DataSet], DataSet | None]:
    SPOILT[way.__name__.lstrip("_")] = way
    return way


@clean
def _sentiment(draw: random.Random) -> DataSet:
    pairs = [
        ["neg", "pos"],
        ["negative", "positive"],
        ["好评", "差评"],
        ["negativ", "positiv", "neutral"],
        ["отрицательный", "положительный"],
    ]
    return _plain(draw, draw.choice(pairs))


@clean
def _stars(draw: random.Random) -> DataSet:
    data = _plain(draw, list("12345"), weights=[3, 1, 2, 4, 8])
    return replace(data, names=draw.choice([("text", "label"), ("review", "stars"), ("评论", "评分"), ("comment", "rating")]))


@clean
def _ratings_to_ten(draw: random.Random) -> DataSet:
    return _plain(draw, [str(number) for number in range(draw.choice([0, 1]), 11)], weights=None)


@clean
def _chinese_reviews(draw: random.Random) -> DataSet:
    return replace(_plain(draw, ["好评", "差评", "中评"], language="zh"), names=("评论", "类别"))


@clean
def _topics_by_number(draw: random.Random) -> DataSet:
    return replace(_plain(draw, [str(number) for number in range(draw.randint(2, 20))]), form="tsv")


@clean
def _spam(draw: random.Random) -> DataSet:
    data = _plain(draw, ["ham", "spam"], weights=[87, 13])
    return replace(data, names=draw.choice([("text", "label"), ("message", "label"), ("text", "spam"), ("sms", "class")]))


@clean
def _one_percent(draw: random.Random) -> DataSet:
    rare = draw.randint(10, 20)
    return _fixed(draw, {"no": 100 * rare, "yes": rare}, "en")


@clean
def _many_intents(draw: random.Random) -> DataSet:
    verbs, things = (
        "open close find cancel change check order track report lock".split(),
        ("card account order flight loan balance address pin ticket meeting alarm song light invoice phone".split()),
    )
    return _fixed(draw, {f"{verb}_{thing}": draw.randint(3, 7) for verb in verbs for thing in things}, "en")


@clean
def _many_numbers(draw: random.Random) -> DataSet:
    return _fixed(draw, {str(number): draw.randint(4, 9) for number in range(draw.choice([77, 150, 64, 41]))})


@clean
def _long_tail(draw: random.Random) -> DataSet:
    return _fixed(draw, {f"class {chr(65 + place % 26)}{'x' * (place // 26)}": draw.randint(2, 30) for place in range(40)})


@clean
def _zipf(draw: random.Random) -> DataSet:
    names = "sport politics economy culture science travel food health cars weather crime religion fashion music film games law".split()
    return _fixed(draw, {name: max(4, 240 // (place + 1)) for place, name in enumerate(names)})


@clean
def _emoji(draw: random.Random) -> DataSet:
    return _plain(draw, draw.sample(["😀", "😡", "😢", "❤️", "👍", "👎", "🎉"], 4))


@clean
def _switches(draw: random.Random) -> DataSet:
    return _plain(
        draw, draw.choice([["true", "false"], ["yes", "no"], ["0", "1"], ["True", "False"], ["是", "否"], ["Y", "N"]])
    )


@clean
def _languages(draw: random.Random) -> DataSet:
    names = {"en": "en", "de": "de", "es": "es", "fr": "fr", "ru": "ru", "zh": "zh", "tr": "tr", "ko": "ko"}
    return DataSet([(_sentence(draw, name), names[name]) for name in draw.choices(list(names), k=400)])


@clean
def _countries(draw: random.Random) -> DataSet:
    return _plain(draw, draw.sample(["US", "CN", "DE", "NA", "NO", "FR", "JP", "BR"], 5))


@clean
def _long_chinese_names(draw: random.Random) -> DataSet:
    names = [
        "劳动人事争议仲裁与社会保险",
        "房屋租赁与物业服务合同纠纷",
        "道路交通事故人身损害赔偿",
        "知识产权侵权与不正当竞争",
        "金融借款合同及担保责任",
    ]
    return _plain(draw, names, language="zh")


@clean
def _people(draw: random.Random) -> DataSet:
    first = {
        "german": "Hans Jürgen Ute Heike Karl Anke",
        "italian": "Marco Luca Giulia Chiara Paolo",
        "polish": "Jan Piotr Ewa Anna Zofia",
    }
    last = {
        "german": "Müller Schmidt Weber Fischer Becker",
        "italian": "Rossi Bianchi Ricci Conti",
        "polish": "Kowalski Nowak Wójcik Mazur",
    }
    rows = []
    for nation in draw.choices(list(first), k=300):
        rows.append((f"{draw.choice(first[nation].split())} {draw.choice(last[nation].split())}", nation))
    return DataSet(rows, names=draw.choice([("text", "label"), ("name", "nationality")]))


@clean
def _single_words(draw: random.Random) -> DataSet:
    words = {language: sorted(set(text.split())) for language, text in _WORDS.items()}
    given = draw.sample(["en", "de", "es", "fr", "tr"], 3)
    return DataSet([(word, language) for language in given for word in words[language] * 3])


@clean
def _product_titles(draw: random.Random) -> DataSet:
    makers, things = (
        ["Nordlicht", "ACME", "Sanyu", "Weber"],
        ["Kettle", "Toaster", "Headphones", "Running Shoes", "USB-C Cable", "Lamp"],
    )
    labels = ["Home & Kitchen", "Electronics", "Sports & Outdoors", "Arts, Crafts & Sewing"]
    rows = [
        (
            f"{draw.choice(makers)} {draw.choice(things)} {draw.choice('XSMB')}{draw.randint(1, 900)} {draw.randint(1, 90)} W",
            draw.choice(labels),
        )
        for _ in range(400)
    ]
    return DataSet(rows, names=("title", "category"))


@clean
def _tweets(draw: random.Random) -> DataSet:
    data = _plain(draw, ["negative", "neutral", "positive"], language="en")
    return data.with_texts(
        lambda: (
            f"@user{draw.randint(1, 99)} {_sentence(draw, 'en', 3, 9)} #{draw.choice(['love', 'fail'])} https://t.co/{draw.randint(1, 1 << 30):x}"
        )
    )


@clean
def _code(draw: random.Random) -> DataSet:
    snippets = {
        "python": "def {a}({b}):\n    return {b} + {n}\n",
        "c": "int {a}(int {b}) {{\n  return {b} + {n};\n}}\n",
        "c++": "auto {a} = [](int {b}) {{ return {b} * {n}; }};\nstd::cout << {a}({n});\n",
        "c#": "public static int {a}(int {b}) => {b} - {n};\n",
        "go": "func {a}({b} int) int {{ return {b} / {n} }}\n",
    }
    names = "load save compute index count total value result left right".split()
    return DataSet(
        [
            (snippets[language].format(a=draw.choice(names), b=draw.choice(names), n=draw.randint(0, 99)), language)
            for language in draw.choices(list(snippets), k=300)
        ],
        form=draw.choice(["csv", "jsonl"]),
    )


@clean
def _genes(draw: random.Random) -> DataSet:
    return _plain(draw, ["0", "1"]).with_texts(lambda: "".join(draw.choices("ACGT", k=draw.randint(40, 90))))


@clean
def _stance(draw: random.Random) -> DataSet:
    return _plain(draw, ["FAVOR", "AGAINST", "NONE"], weights=[5, 5, 4])


@clean
def _paths(draw: random.Random) -> DataSet:
    sign = draw.choice(["/", " > ", ".", "|"])
    return _plain(
        draw, [sign.join(pair) for pair in (("sport", "tennis"), ("sport", "golf"), ("news", "world"), ("news", "local"))]
    )


@clean
def _newsgroups(draw: random.Random) -> DataSet:
    return _plain(
        draw,
        ["comp.graphics", "comp.sys.mac", "rec.autos", "sci.space", "sci.med", "talk.politics", "alt.atheism"],
        language="en",
    )


@clean
def _sci_tech(draw: random.Random) -> DataSet:
    return _plain(draw, ["World", "Sports", "Business", "Sci/Tech"], language="en")


@clean
def _signed(draw: random.Random) -> DataSet:
    return _plain(draw, draw.choice([["-1", "0", "1"], ["-1", "1"], ["-2", "-1", "0", "1", "2"]]))


@clean
def _with_metadata(draw: random.Random) -> DataSet:
    data = _plain(draw, ["neg", "pos"], language=draw.choice(_LANGUAGES))
    count = len(data.rows)
    more = {
        "id": [str(uuid.UUID(int=draw.getrandbits(128))) for _ in range(count)],
        "date": [f"2023-{draw.randint(1, 12):02}-{draw.randint(1, 28):02}" for _ in range(count)],
        "source": draw.choices(["web", "app", "phone"], k=count),
        "author": [f"{draw.choice(['Ann', 'Bob', 'Li'])} {draw.choice(['Smith', 'Wang', 'Kim'])}" for _ in range(count)],
        "split": ["train"] * count,
        "url": [f"https://example.com/{draw.getrandbits(30):x}" for _ in range(count)],
        "votes": [str(draw.randint(0, 9)) for _ in range(count)],
    }
    return replace(data, more={name: more[name] for name in draw.sample(sorted(more), draw.randint(1, 5))})


@clean
def _label_in_words_too(draw: random.Random) -> DataSet:
    data = _plain(draw, ["0", "1", "2"])
    words = {"0": "sadness", "1": "joy", "2": "anger"}
    return replace(data, more={"label_text": [words[label] for _, label in data.rows]})


@clean
def _folder(draw: random.Random) -> DataSet:
    return replace(
        _plain(draw, draw.choice([["neg", "pos"], ["sport", "culture", "politics"], ["体育", "财经", "娱乐"]])), form="folder"
    )


@clean
def _parquet(draw: random.Random) -> DataSet:
    return replace(_plain(draw, draw.choice([["0", "1"], ["a", "b", "c"]])), form="parquet")


@clean
def _category_codes(draw: random.Random) -> DataSet:
    return _plain(draw, [str(code) for code in draw.sample(range(10, 2999), 20)], rows=500)


@clean
def _pairs(draw: random.Random) -> DataSet:
    data = _plain(draw, ["entailment", "neutral", "contradiction"], language="en")
    return replace(
        data,
        names=("premise", "label"),
        more={"hypothesis": [_sentence(draw, "en", 3, 7) for _ in data.rows]},
        text_pair="hypothesis",
    )


@clean
def _evaluated(draw: random.Random) -> DataSet:
    data = _plain(draw, ["neg", "pos"])
    fresh = replace(data).with_texts(lambda: _sentence(draw, "en")).rows[:80]
    return replace(data, evaluation=fresh + data.rows[: draw.randint(0, 12)])


@clean
def _long_mails(draw: random.Random) -> DataSet:
    data = _plain(draw, ["billing", "technical", "other"], rows=200)
    return replace(data.with_texts(lambda: "\n".join(_sentence(draw, "en", 10, 30) for _ in range(6))), form="csv")


@clean
def _log_lines(draw: random.Random) -> DataSet:
    data = _plain(draw, ["INFO", "WARN", "ERROR"], language="en")
    return data.with_texts(
        lambda: (
            f"2024-01-{draw.randint(1, 28):02} 12:{draw.randint(0, 59):02}:01 [{draw.randint(1, 99)}] {_sentence(draw, 'en')}"
        )
    )


@clean
def _grades(draw: random.Random) -> DataSet:
    return _plain(
        draw, draw.choice([list("ABCDF"), ["A+", "A", "B+", "B", "C"], [str(n) for n in range(1, 7)], ["I", "II", "III", "IV"]])
    )


# --------------------------------------------------------------------------------------------------------------------
# Ways of spoiling


def _every(draw: random.Random, data: DataSet, label: str, share: tuple[float, float] = (0.015, 0.06)) -> DataSet | None:
    wanted = max(4, round(len(data.rows) * draw.uniform(*share)))
    places = set(draw.sample(range(len(data.rows)), wanted))
    return data.labelled(lambda place, had: label if place in places else had)


@spoils
def _minus(draw: random.Random, data: DataSet) -> DataSet | None:
    if any(label.startswith("-") for label in data.labels()):
        return None
    return _every(draw, data, draw.choice(["-1", "-100", "-1", "-999"]))


@spoils
def _nan(draw: random.Random, data: DataSet) -> DataSet | None:
    return _every(draw, data, draw.choice(["nan", "NaN", "null", "N/A", "<NA>", "NULL"]))


@spoils
def _unknown(draw: random.Random, data: DataSet) -> DataSet | None:
    return _every(
        draw, data, draw.choice(["unknown", "Unknown", "未知", "unlabeled", "UNK", "?", "-", "неизвестно"]), (0.02, 0.12)
    )


@spoils
def _nines(draw: random.Random, data: DataSet) -> DataSet | None:
    return _every(draw, data.labelled(lambda _, __: str(draw.randint(1, 5))), draw.choice(["99", "999", "9999"]))


@spoils
def _few_rows(draw: random.Random, data: DataSet) -> DataSet | None:
    smallest = min(data.labels().values())
    if smallest < 60:
        return None
    few, text = draw.randint(1, min(5, smallest // 25)), draw.choice(_LANGUAGES)
    name = draw.choice(
        ["postive", "Notiz", "extra", "7b"] if data.form == "folder" else ["README", "postive", "说明", "Notiz", "extra", "7b"]
    )
    return replace(data, rows=data.rows + [(_sentence(draw, text), name) for _ in range(few)], more={})


@spoils
def _fractions(draw: random.Random, data: DataSet) -> DataSet | None:
    steps = draw.choice([5, 10, 4, 2])
    sign = draw.choice([".", ".", ","])
    return data.labelled(lambda _, __: f"{draw.randint(0, 5 * steps) / steps:g}".replace(".", sign))


@spoils
def _percent(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.randrange(4)
    rows = max(300, len(data.rows))
    data = replace(data, rows=(data.rows * 4)[:rows], more={})
    data = replace(data, rows=[(f"{text} {place}", label) for place, (text, label) in enumerate(data.rows)])
    return data.labelled(
        lambda _, __: [
            str(draw.randint(0, 100)),
            str(10 * draw.randint(0, 10)),
            str(min(100, max(0, round(draw.gauss(60, 15))))),
            str(round(draw.gauss(40, 9))),
        ][way]
    )


@spoils
def _list_cells(draw: random.Random, data: DataSet) -> DataSet | None:
    pool = draw.choice([["neg", "pos", "food", "room"], ["体育", "财经", "娱乐"], ["0", "1", "2", "3"]])
    way: Callable[[list[str]], str] = draw.choice(
        [repr, lambda names: json.dumps(names, ensure_ascii=False), lambda names: "{" + ",".join(names) + "}"]
    )
    return data.labelled(lambda _, __: way(sorted(draw.sample(pool, draw.randint(1, 2)))))


@spoils
def _joined(draw: random.Random, data: DataSet) -> DataSet | None:
    pool = draw.choice(
        [
            ["neg", "pos", "food", "room"],
            ["体育", "财经", "娱乐"],
            ["comedy", "drama", "horror", "science fiction"],
            ["1", "4", "7"],
        ]
    )
    sign = draw.choice(["|", ";", ", ", "、", "+", "；", "/", " & "])
    return data.labelled(lambda _, __: sign.join(draw.sample(pool, draw.choice([1, 1, 2, 3]))))


@spoils
def _case(draw: random.Random, data: DataSet) -> DataSet | None:
    names = [label for label in data.labels() if label.swapcase() != label and label.isascii()]
    if not names or len(data.labels()) > 30:
        return None
    one, change = draw.choice(names), draw.choice([str.upper, str.title, str.swapcase, str.capitalize, str.lower])
    if change(one) == one:
        return None
    return data.labelled(lambda _, label: change(label) if label == one and draw.random() < 0.3 else label)


@spoils
def _width(draw: random.Random, data: DataSet) -> DataSet | None:
    def wide(label: str) -> str:
        return "".join(chr(ord(sign) + 0xFEE0) if 33 <= ord(sign) <= 126 else sign for sign in label)

    changes = [
        wide,
        lambda label: label.replace(" ", "  ") if " " in label else label + "\u200b",
        lambda label: label.replace("_", " ") if "_" in label else "\ufeff" + label,
        lambda label: f"'{label}'",
        lambda label: label + ".",
    ]
    change: Callable[[str], str] = draw.choice(changes)
    names = [label for label in data.labels() if change(label) != label and any(map(str.isalnum, label))]
    if not names or data.form == "folder":
        return None
    one = draw.choice(names)
    return data.labelled(lambda _, label: change(label) if label == one and draw.random() < 0.4 else label)


@spoils
def _second_text(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair or data.evaluation:
        return None
    language, name = draw.choice(_LANGUAGES), draw.choice(["hypothesis", "title", "sentence2", "回答", "summary", "reply"])
    names = data.names if data.names[0] in ("text", "review", "comment", "评论") else ("text", "label")
    return replace(data, names=names, more={name: [_sentence(draw, language, 6, 14) for _ in data.rows]})


@spoils
def _second_label(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair or data.evaluation or len(data.labels()) > 40:
        return None
    first, second, values = draw.choice(
        [
            ("sentiment", "stance", ["favor", "against", "neither"]),
            ("类别", "情感", ["正面", "负面"]),
            ("category", "emotion", ["joy", "anger", "fear"]),
            ("label", "label2", ["urgent", "normal"]),
            ("class", "subclass", ["alpha", "beta", "gamma", "delta"]),
        ]
    )
    return replace(data, names=("text", first), more={second: draw.choices(values, k=len(data.rows))})


@spoils
def _links(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(
        [
            lambda: f"http://www.imdb.com/title/tt{draw.randint(1, 9999999):07}/usercomments",
            lambda: f"https://news.example.cn/{draw.getrandbits(40):x}.html",
            lambda: f"data/images/{draw.randint(1, 9999):05}.jpg",
            lambda: f"/home/ann/corpus/{draw.choice(['neg', 'pos'])}/{draw.randint(1, 99999)}_{draw.randint(1, 10)}.txt",
            lambda: f"user{draw.randint(1, 9999)}@example.org",
        ]
    )
    return replace(data, text_pair=None, more={}, evaluation=None).with_texts(way)


@spoils
def _ids(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(
        [
            lambda: str(uuid.UUID(int=draw.getrandbits(128))),
            lambda: f"{draw.getrandbits(128):032x}",
            lambda: f"user_{draw.randint(1, 99999):05}",
            lambda: f"B{draw.randint(0, 999):03}{draw.choice('XYZ')}{draw.randint(1000, 9999)}",
        ]
    )
    return replace(data, text_pair=None, more={}, evaluation=None).with_texts(way)


@spoils
def _encoded(draw: random.Random, data: DataSet) -> DataSet | None:
    return replace(data, text_pair=None, more={}, evaluation=None).with_texts(
        lambda: base64.b64encode(draw.randbytes(draw.randint(30, 200))).decode()
    )


@spoils
def _numbers(draw: random.Random, data: DataSet) -> DataSet | None:
    sign, form = draw.choice([" ", ", "]), draw.choice(["csv", "jsonl"])
    return replace(data, text_pair=None, more={}, evaluation=None, form=form).with_texts(
        lambda: sign.join(f"{draw.uniform(0, 9):.2f}" for _ in range(draw.randint(1, 9)))
    )


@spoils
def _header_again(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair or data.evaluation:
        return None
    place = draw.randrange(10, len(data.rows))
    return replace(data, rows=[*data.rows[:place], data.names, *data.rows[place:]], more={})


@spoils
def _no_header(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form not in ("csv", "tsv") or data.text_pair or data.evaluation or data.names != ("text", "label"):
        return None
    return replace(data, preamble=False, more={})


@spoils
def _evaluated_on_training(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair:
        return None
    taken = draw.sample(data.rows, len(data.rows) // 3)
    return replace(
        data, evaluation=taken + [(_sentence(draw), data.rows[0][1]) for _ in range(draw.randint(0, len(taken) // 2))]
    )


@spoils
def _parts(draw: random.Random, data: DataSet) -> DataSet | None:
    if any("\t" in text or "\n" in text for text, _ in data.rows):
        return None
    names = draw.choice([["train", "dev", "test"], ["train", "validation"], ["训练集", "测试集"], ["part1", "part2", "part3"]])
    if draw.random() < 0.5:
        data = replace(data, rows=[(f"{text}\t{label}", label) for text, label in data.rows])
        names = draw.choice([names, ["alt", "neu"], ["a", "b"]])
    return replace(data, form="folder", evaluation=None, text_pair=None, more={}).labelled(lambda _, __: draw.choice(names))


@spoils
def _list_beside(draw: random.Random, data: DataSet) -> DataSet | None:
    links = [
        (f"http://www.imdb.com/title/tt{draw.randint(1, 9999999)}/", draw.choice(["urls", "quellen", "pos2"]))
        for _ in range(80)
    ]
    if len(data.labels()) > 30:
        return None
    return replace(data, rows=data.rows + links, more={}, text_pair=None, evaluation=None)


@spoils
def _switch_columns(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair:
        return None
    names = draw.choice([["toxic", "obscene", "threat", "insult"], ["食物", "服务", "环境"]])
    more = {name: draw.choices("01", k=len(data.rows)) for name in names}
    return replace(
        data, rows=[(text, draw.choice("01")) for text, _ in data.rows], names=("text", "hate"), more=more, evaluation=None
    )


@spoils
def _remarks(draw: random.Random, data: DataSet) -> DataSet | None:
    common = [label for label, count in data.labels().items() if count >= 60 and label[-1].isalnum()]
    if not common or data.form == "folder":
        return None
    one, mark = draw.choice(common), draw.choice(["?", " (unsure)", "!!", " ?", "（不确定）", " *"])
    places = [place for place, (_, label) in enumerate(data.rows) if label == one][:3]
    return data.labelled(lambda place, label: label + mark if place in places else label)


@spoils
def _sentences_as_labels(draw: random.Random, data: DataSet) -> DataSet | None:
    note = draw.choice(
        [
            "I am not sure about this one, please look at it again with somebody who knows.",
            "这条评论我看不懂，请以后再让另外一位同事重新检查一遍然后决定到底应该属于哪一个类别吧谢谢大家",
        ]
    )
    return None if data.form == "folder" else _every(draw, data, note, (0.01, 0.04))


@spoils
def _a_row_for_each_label(draw: random.Random, data: DataSet) -> DataSet | None:
    names = ["food", "service", "price", "room"]
    texts = [text for text, _ in data.rows][:150]
    rows = [(text, name) for text in texts for name in draw.sample(names, draw.choice([2, 2, 3, 1]))]
    return replace(data, rows=rows, more={}, text_pair=None, evaluation=None)


@spoils
def _two_ways_of_writing(draw: random.Random, data: DataSet) -> DataSet | None:
    words = draw.choice([["neg", "pos"], ["否", "是"], ["no", "yes"]])
    half = len(data.rows) // 2
    return data.labelled(lambda place, _: draw.choice(words if place < half else ["0", "1"]))


@spoils
def _dates(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["2024-03-{:02}", "{:02}.03.2024", "2024年3月{}日"])
    return None if data.form == "folder" else data.labelled(lambda _, __: way.format(draw.randint(1, 20)))


@spoils
def _all_different(draw: random.Random, data: DataSet) -> DataSet | None:
    return None if data.form == "folder" else data.labelled(lambda place, _: f"r{place}")


# --------------------------------------------------------------------------------------------------------------------
# Held out: written when the judge was done, without a look at its figures

SEEN, SEEN_SPOILT = list(CLEAN), list(SPOILT)


@clean
def _departments(draw: random.Random) -> DataSet:
    data = _plain(draw, ["Vendas", "Suporte Técnico", "Recursos Humanos", "Financeiro"], language="es")
    return replace(data, names=("mensagem", "departamento"), form="semicolons")


@clean
def _recipes(draw: random.Random) -> DataSet:
    things = "eggs flour sugar butter rice garlic tomatoes soy_sauce noodles basil cream chicken lime tofu".split()

    def recipe() -> str:
        return ", ".join(
            f"{draw.randint(1, 500)} g {thing.replace('_', ' ')}" for thing in draw.sample(things, draw.randint(3, 7))
        )

    return _plain(draw, ["italian", "chinese", "mexican"]).with_texts(recipe)


@clean
def _sums(draw: random.Random) -> DataSet:
    asked = {"addition": "What is {} plus {}?", "subtraction": "What is {} minus {}?", "product": "How much is {} times {}?"}
    return DataSet(
        [(asked[name].format(draw.randint(1, 999), draw.randint(1, 999)), name) for name in draw.choices(list(asked), k=300)]
    )


@clean
def _films(draw: random.Random) -> DataSet:
    words = "Night River Last King Silent Garden House Dream Blue Stranger Return Winter Shadow".split()
    data = _plain(draw, ["Drama", "Comedy", "Horror", "Sci-Fi"])
    return replace(
        data.with_texts(lambda: f"The {' '.join(draw.sample(words, 2))} ({draw.randint(1930, 2023)})"), names=("title", "genre")
    )


@clean
def _lyrics(draw: random.Random) -> DataSet:
    data = _plain(draw, ["1970s", "1980s", "1990s", "2000s"])
    return replace(
        data.with_texts(lambda: "\n".join(_sentence(draw, "en", 3, 7) for _ in range(8))), form=draw.choice(["csv", "jsonl"])
    )


@clean
def _thai(draw: random.Random) -> DataSet:
    words = "ห้อง สะอาด พนักงาน เป็นมิตร อาหาร เย็น รอ นาน วิว สวย ราคา เหมาะสม".split()
    return _plain(draw, ["0", "1"]).with_texts(lambda: "".join(draw.choices(words, k=draw.randint(4, 12))))


@clean
def _question_types(draw: random.Random) -> DataSet:
    return _plain(
        draw, ["ABBR", "DESC", "ENTY", "HUM", "LOC", "NUM"], language="en", rows=1200, weights=[1, 20, 22, 21, 15, 16]
    )


@clean
def _levels(draw: random.Random) -> DataSet:
    return _plain(draw, ["A1", "A2", "B1", "B2", "C1", "C2"], language="de")


@clean
def _molecules(draw: random.Random) -> DataSet:
    parts = ["CC", "C(=O)O", "c1ccccc1", "N", "CCN", "C#N", "OC", "Cl", "C(F)(F)F", "S(=O)(=O)N"]
    return _plain(draw, ["toxic", "harmless"]).with_texts(lambda: "".join(draw.choices(parts, k=draw.randint(3, 8))))


@clean
def _queries(draw: random.Random) -> DataSet:
    columns, tables = "id name price total city".split(), "users orders items".split()
    return _plain(draw, ["read", "write"]).with_texts(
        lambda: (
            f"SELECT {draw.choice(columns)}, {draw.choice(columns)} FROM {draw.choice(tables)} WHERE {draw.choice(columns)} > {draw.randint(1, 99)}"
        )
    )


@clean
def _dialogue_acts(draw: random.Random) -> DataSet:
    return _plain(draw, ["Statement", "Statement (opinion)", "Question", "Question (yes/no)", "Backchannel"], language="en")


@clean
def _many_columns(draw: random.Random) -> DataSet:
    data = replace(_plain(draw, list("012345")), form="jsonl")
    count = len(data.rows)
    return replace(
        data,
        more={
            "idx": [str(place) for place in range(count)],
            "confidence": [f"{draw.random():.3f}" for _ in range(count)],
            "lang": draw.choices(["en", "de"], k=count),
            "timestamp": [str(1700000000 + draw.randint(1, 10**7)) for _ in range(count)],
            "user_agent": draw.choices(
                ["Mozilla/5.0 (X11; Linux x86_64)", "curl/8.0", "Mozilla/5.0 (Windows NT 10.0; Win64; x64) like Gecko"], k=count
            ),
        },
    )


@clean
def _age_groups(draw: random.Random) -> DataSet:
    return _plain(draw, ["0-12", "13-17", "18-25", "26-64", "65+"])


@clean
def _parties(draw: random.Random) -> DataSet:
    return _plain(draw, ["CDU/CSU", "SPD", "Bündnis 90/Die Grünen", "Die Linke", "FDP"], language="de")


@clean
def _small(draw: random.Random) -> DataSet:
    return _plain(draw, ["a", "b"], rows=40)


@clean
def _degrees(draw: random.Random) -> DataSet:
    return _plain(draw, draw.choice([["very good", "good", "bad", "very bad"], ["很好", "好", "差", "很差"]]))


@clean
def _steps_of_rarity(draw: random.Random) -> DataSet:
    return _fixed(draw, {"normal": 900, "low": 380, "high": 150, "urgent": 60, "critical": 15})


@spoils
def _words_for_missing(draw: random.Random, data: DataSet) -> DataSet | None:
    return _every(
        draw, data, draw.choice(["None", ".", "待标注", "sin datos", "not annotated", "#N/A", "???", "(blank)", "нет данных"])
    )


@spoils
def _with_confidence(draw: random.Random, data: DataSet) -> DataSet | None:
    sign = draw.choice([":", " ", "|"])
    return data.labelled(lambda _, __: f"{draw.choice(['neg', 'pos'])}{sign}{draw.random():.1f}")


@spoils
def _up_to_a_thousand(draw: random.Random, data: DataSet) -> DataSet | None:
    rows = [(f"{text} {place}", label) for place, (text, label) in enumerate(data.rows * 3)]
    return replace(data, rows=rows, more={}, text_pair=None).labelled(lambda _, __: str(20 * draw.randint(0, 50)))


@spoils
def _joined_oddly(draw: random.Random, data: DataSet) -> DataSet | None:
    pool, sign = (
        draw.choice([["库存", "物流", "价格"], ["rot", "grün", "blau", "gelb"]]),
        draw.choice([" / ", "//", " && ", " ; ", " + ", "  "]),
    )
    return data.labelled(lambda _, __: sign.join(sorted(draw.sample(pool, draw.choice([1, 2])))))


@spoils
def _title_and_body(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.evaluation or data.text_pair:
        return None
    return replace(data, names=("内容", "类别"), more={"标题": [_sentence(draw, "zh", 6, 10) for _ in data.rows]}).with_texts(
        lambda: _sentence(draw, "zh", 20, 60)
    )


@spoils
def _a_few_prompts(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.evaluation or data.text_pair:
        return None
    prompts = [_sentence(draw, "en", 10, 20) for _ in range(8)]
    return replace(data, names=("text", "label"), more={"prompt": draw.choices(prompts, k=len(data.rows))})


@spoils
def _telephone(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(
        [
            lambda: f"+49 {draw.randint(100, 999)} {draw.randint(10**6, 10**7)}",
            lambda: f"978-{draw.randint(0, 9)}-{draw.randint(100, 999)}-{draw.randint(10000, 99999)}-{draw.randint(0, 9)}",
            lambda: f"192.168.{draw.randint(0, 255)}.{draw.randint(0, 255)}",
            lambda: ":".join(f"{draw.randint(0, 255):02x}" for _ in range(6)),
            lambda: repr([_sentence(draw, "en", 1, 2) for _ in range(4)]),
        ]
    )
    return replace(data, text_pair=None, more={}, evaluation=None, form="csv").with_texts(way)


@spoils
def _evaluated_on_itself(draw: random.Random, data: DataSet) -> DataSet | None:
    return None if data.form == "folder" or data.text_pair else replace(data, evaluation=list(data.rows))


@spoils
def _blanks_inside(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder":
        return None
    odd = draw.choice(
        [
            "very\u00a0good",
            "Very good",
            "very  good",
            "very-good",
            "very good!",
            "ｖｅｒｙ ｇｏｏｄ",
            "very goods "[:-2] + "\u200d",
        ]
    )
    return data.labelled(lambda _, __: draw.choice(["very good", "very good", "bad", "bad", odd]))


@spoils
def _licence(draw: random.Random, data: DataSet) -> DataSet | None:
    if min(data.labels().values()) < 80 or len(data.labels()) < 2:
        return None
    extra = [(_sentence(draw), draw.choice(["LIZENZ", "HISTORY", "Hinweise"])) for _ in range(3)]
    rows = [(text.replace("\n", " "), label.replace("/", "-")) for text, label in data.rows]
    return replace(data, rows=rows + extra, form="folder", more={}, text_pair=None, evaluation=None)


@spoils
def _money(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["${:.2f}", "{:.2f} €", "{:.1f}%", "{:.1f}/5"][: 3 if data.form == "folder" else 4])
    return data.labelled(lambda _, __: way.format(draw.randint(2, 30) / 4))


@spoils
def _objects(draw: random.Random, data: DataSet) -> DataSet | None:
    return data.labelled(lambda _, __: json.dumps({"label": draw.choice(["neg", "pos"])})) if data.form != "folder" else None


@spoils
def _two_of_thousands(draw: random.Random, data: DataSet) -> DataSet | None:
    rows = [(f"{text} {place}", draw.choice(["yes", "no"])) for place, (text, _) in enumerate(data.rows * 4)]
    return replace(data, rows=[*rows, ("one more of them", "yse"), ("and another one", "yse")], more={}, text_pair=None)


@spoils
def _shouted_header(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair or data.evaluation:
        return None
    names = data.names[0].upper(), data.names[1].upper()
    return replace(data, rows=[*data.rows, names, *data.rows[:50]], more={})


@spoils
def _folds(draw: random.Random, data: DataSet) -> DataSet | None:
    names = draw.choice(
        [[f"fold{number}" for number in range(4)], ["train_a", "train_b", "test_a"], ["2024-train", "2024-test"]]
    )
    rows = [(text.replace("\n", " "), draw.choice(names)) for text, _ in data.rows]
    return replace(data, rows=rows, form="folder", more={}, text_pair=None, evaluation=None)


# --------------------------------------------------------------------------------------------------------------------
# A third look: as programs and people export data


@clean
def _opposites(draw: random.Random) -> DataSet:
    return _plain(
        draw, draw.choice([["known", "unknown"], ["sure", "not sure"], ["labeled", "unlabeled"], ["defined", "undefined"]])
    )


@clean
def _black_and_white(draw: random.Random) -> DataSet:
    one, other, word = draw.choice([("black", "white", "and"), ("salt", "pepper", "and"), ("rot", "weiß", "und")])
    return _plain(draw, [one, other, f"{one} {word} {other}"])


@clean
def _forms(draw: random.Random) -> DataSet:
    return _plain(draw, draw.choice([["10-K", "10-Q", "8-K"], ["5G", "4G", "3G", "LTE"], ["PG", "PG-13", "R"], ["3D", "2D"]]))


@clean
def _members(draw: random.Random) -> DataSet:
    return _plain(draw, [f"Label.{name}" for name in ("NEG", "NEU", "POS")])


@clean
def _disaster_tweets(draw: random.Random) -> DataSet:
    data = _plain(draw, ["0", "1"], language="en")
    places = [draw.choice(["", "USA", "London", "Lagos", "New York"]) for _ in data.rows]
    words = [draw.choice(["ablaze", "fire", "flood", ""]) for _ in data.rows]
    return replace(
        data, names=("text", "target"), more={"id": [str(n) for n in range(len(places))], "keyword": words, "location": places}
    )


@spoils
def _printed(draw: random.Random, data: DataSet) -> DataSet | None:
    form = draw.choice(["tensor({})", "np.int64({})", "array({})", "b'{}'", "<Label.L{0}: {0}>", "np.str_('{}')"])
    return data.labelled(lambda _, __: form.format(draw.randint(0, 1))) if data.form != "folder" else None


@spoils
def _hours(draw: random.Random, data: DataSet) -> DataSet | None:
    ways: list[Callable[[], str]] = [
        lambda: f"{draw.randint(0, 23):02}:{draw.choice([0, 15, 30, 45]):02}",
        lambda: f"{draw.randint(1, 12)}:30 {draw.choice(['AM', 'PM'])}",
        lambda: f"{draw.choice(['Jan', 'Mar', 'May'])} {draw.randint(1, 28)}, 2023",
        lambda: f"{draw.randint(1, 12)}月{draw.randint(1, 28)}日",
        lambda: str(1_700_000_000 + 3600 * draw.randint(0, 40)),
    ]
    way = draw.choice(ways)
    return data.labelled(lambda _, __: way()) if data.form != "folder" else None


@spoils
def _missing_in_any_language(draw: random.Random, data: DataSet) -> DataSet | None:
    words = (
        "belirsiz değil|bilinmiyor|không xác định|chưa gán nhãn|nicht zugeordnet|non renseigné|no aplica|não classificado|onbekend|"
        "brak danych|neurčeno|okänd|ei tiedossa|ismeretlen|necunoscut|χωρίς ετικέτα|अज्ञात|未分類|라벨 없음|tidak diketahui|"
        "немає даних|غير محدد|לא ידוע|can't tell|看不出|placeholder|#NV|#¡VALOR!|#NAME?"
    )
    return _every(draw, data, draw.choice(words.split("|")[1:]))


@spoils
def _wrong_encoding(draw: random.Random, data: DataSet) -> DataSet | None:
    if all(text.isascii() for text, _ in data.rows) or data.text_pair or data.form == "folder":
        return None
    broken = [(text.encode().decode("latin-1"), label) for text, label in data.rows]
    return replace(data, rows=[row for row in broken if row[0].isprintable() or draw.random() < 0.9], more={}, evaluation=None)


@spoils
def _rejected(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.evaluation or data.text_pair:
        return None
    return replace(data, more={"answer": [draw.choice(["accept", "accept", "reject"]) for _ in data.rows]})


@spoils
def _initials(draw: random.Random, data: DataSet) -> DataSet | None:
    names = draw.choice(
        [["yes", "no", "Y", "N"], ["正面", "负面", "正", "负"], ["true", "false", "T", "F"], ["male", "female", "M", "F"]]
    )
    return data.labelled(lambda _, __: draw.choice(names)) if data.form != "folder" else None


@spoils
def _evaluated_on_copies(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair:
        return None
    return replace(data, evaluation=[(f"{text.upper()} ", label) for text, label in data.rows])


@spoils
def _label_as_text(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair or data.evaluation:
        return None
    return replace(data, rows=[(label, label) for _, label in data.rows])


@clean
def _codes_from_a_hundred(draw: random.Random) -> DataSet:
    codes = [100 + number for number in range(17) if number not in (5, 11)]
    return replace(_plain(draw, [str(code) for code in codes], rows=draw.randint(600, 1200)), form="jsonl")


@clean
def _rumours(draw: random.Random) -> DataSet:
    return _plain(draw, ["true", "false", "unverified", "non-rumor"])


@clean
def _hundreds_of_intents(draw: random.Random) -> DataSet:
    names = [f"{verb}_{noun}" for verb in "book play ask set get tell cancel".split() for noun in _WORDS["en"].split()[:24]]
    names = draw.sample(names, draw.randint(110, 160))
    rows = [(f"{_sentence(draw, 'en', 3, 8)} {place}", names[place % len(names)]) for place in range(12 * len(names))]
    draw.shuffle(rows)
    return DataSet(rows, names=("text", "intent"))


@clean
def _signs_in_names(draw: random.Random) -> DataSet:
    names = [
        ["C", "C++", "C#", "F#", "R"],
        ["A*", "A", "B", "C"],
        ["+", "-", "0"],
        ["R&D", "HR", "IT"],
        ["A+", "A", "A-", "B+"],
    ]
    return _plain(draw, draw.choice(names))


@spoils
def _formulas(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(['=IF(C{}>3,"pos","neg")', "=B{}", "=VLOOKUP(A{};labels!A:B;2;0)"])
    return data.labelled(lambda _, __: way.format(draw.randint(2, 5))) if data.form != "folder" else None


@spoils
def _lengths_as_labels(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.text_pair or data.evaluation:
        return None
    rows = [(_sentence(draw, "en", 5, 9), "") for _ in range(200)]
    return replace(data, rows=[(text, str(len(text.split()))) for text, _ in rows], more={}, names=("text", "label"))


@spoils
def _with_counts(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["{} ({})", "{}: {}", "{} x{}", "{} [{}]"])
    return data.labelled(lambda _, __: way.format(draw.choice(["neg", "pos", "neutral"]), draw.randint(1, 3)))


@spoils
def _marked_up(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["<b>{}</b>", "**{}**", "<{}>", "{}&nbsp;", "_{}_"])
    one = draw.choice([label for label in data.labels() if label.isalpha()] or [""])
    changes = one and len(one) > 1 and data.form != "folder"
    return data.labelled(lambda _, had: way.format(had) if had == one and draw.random() < 0.4 else had) if changes else None


@spoils
def _labels_in_a_wrong_encoding(draw: random.Random, data: DataSet) -> DataSet | None:
    names = draw.choice([["négatif", "positif"], ["schön", "hässlich"], ["正面", "负面"]])
    broken = {name: name.encode().decode("latin-1") for name in names}
    return (
        data.labelled(lambda _, __: broken[name] if draw.random() < 0.3 else name)
        if (name := names[0]) and all(sign.isprintable() for sign in broken[name]) and data.form == "csv"
        else None
    )


@spoils
def _as_tags(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["<{}>", " #{}", " @{}"])
    names = ["python", "pandas", "numpy", "matplotlib"]
    return data.labelled(lambda _, __: "".join(way.format(name) for name in draw.sample(names, draw.randint(1, 2))).strip())


@spoils
def _parts_in_a_column(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.form == "folder" or data.evaluation or data.text_pair:
        return None
    name, values = draw.choice(
        [
            ("split", ["train", "validation", "test"]),
            ("subset", ["训练集", "测试集"]),
            ("is_valid", ["False", "True"]),
            ("is_train", ["1", "0"]),
        ]
    )
    return replace(data, more={name: sorted(draw.choices(values, [8] + [1] * (len(values) - 1), k=len(data.rows)))})


@spoils
def _numbered_for_some(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["{1} - {0}", "{1}. {0}", "Label: {0}", "{1}:{0}"])
    names = draw.choice([["negative", "positive"], ["体育", "财经"], ["spam", "ham"]])
    numbered = {name: way.format(name, place) for place, name in enumerate(names)}
    return data.labelled(lambda _, __: draw.choice([*names, *numbered.values()])) if data.form != "folder" else None


@spoils
def _letters_that_look_alike(draw: random.Random, data: DataSet) -> DataSet | None:
    names = draw.choice([["A", "B", "А"], ["体育", "體育", "财经"], ["négatif", "negatif", "positif"], ["ok", "bad", "оk"]])
    return data.labelled(lambda _, __: draw.choice(names))


@spoils
def _addresses_as_labels(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["person{}@example.org", "10.0.0.{}", "+49 170 10000{:02}", "{:032x}"])
    offset = draw.getrandbits(100) if "x" in way and "@" not in way else 0
    return data.labelled(lambda _, __: way.format(draw.randint(1, 9) + offset)) if data.form != "folder" else None


@spoils
def _durations(draw: random.Random, data: DataSet) -> DataSet | None:
    way = draw.choice(["{}h {}m", "{} min {} s", "{}小时{}分钟"])
    return data.labelled(lambda _, __: way.format(draw.randint(0, 2), draw.randint(0, 9)))


@spoils
def _answers_of_a_program(draw: random.Random, data: DataSet) -> DataSet | None:
    said = [
        "Error: rate limit exceeded",
        "429 Too Many Requests",
        "As an AI language model",
        "I cannot determine the sentiment",
    ]
    known = data.labelled(lambda _, __: draw.choice(["positive", "negative", "neutral"]))
    return _every(draw, known, draw.choice(said)) if data.form != "folder" else None


@spoils
def _bytes_as_texts(draw: random.Random, data: DataSet) -> DataSet | None:
    if data.text_pair or data.evaluation or data.form == "folder":
        return None
    return replace(data, rows=[(repr(text.encode()), label) for text, label in data.rows], more={})


HELD_OUT = [name for name in CLEAN if name not in SEEN]
HELD_OUT_SPOILT = [name for name in SPOILT if name not in SEEN_SPOILT]


# --------------------------------------------------------------------------------------------------------------------
# Those of a measurement


@dataclass(frozen=True)
class Case:
    """A generated set, and which family and way it comes of."""

    name: str
    spoilt: bool
    data: DataSet


def cases(sets: int, seed: int, *, held_out: bool = False) -> Iterator[Case]:
    """`sets` of them, each second one spoilt; all families and all ways come in turn. `held_out` takes those alone."""
    families, ways = (HELD_OUT, HELD_OUT_SPOILT) if held_out else (list(CLEAN), list(SPOILT))
    for number in range(sets):
        draw = random.Random(f"{seed}/{number}")
        family = families[number // 2 % len(families)]
        if number % 2 == 0:
            yield Case(family, False, CLEAN[family](draw))
            continue
        way, spoilt = ways[number // 2 % len(ways)], None
        while spoilt is None:
            family = draw.choice(families)
            whole = CLEAN[family](draw)
            spoilt = SPOILT[way](draw, whole)
            if spoilt == whole:  # chance has changed no row
                spoilt = None
        yield Case(f"{way} of {family}", True, spoilt)
