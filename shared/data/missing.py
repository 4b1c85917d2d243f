"""Words that stand in the place of a label where there is none, in many languages. Pure.

A label's shape does not tell what it means, so this is a list, and ends where it ends: what it does not know, and what is not
rare either, is taken as a class.
"""

from __future__ import annotations

import re

# fmt: off
MISSING = frozenset((
    "nan", "nat", "n.a", "<na>", "#n/a", "n/a", "n.a.", "na", "null", "(null)", "nil", "undefined", "missing", "unlabeled",
    "unlabelled", "unannotated", "unknown", "unk", "<unk>", "[unk]", "tbd", "todo", "fixme", "blank", "<blank>",
    "<none>", "#ref!", "#value!", "\\n", "placeholder", "xxx", "asdf", "qwerty", "lorem ipsum", "undetermined",
    "no label", "not labeled", "not labelled", "no gold", "not available", "not applicable", "don't know", "do not know",
    "dont know", "can't tell", "cannot tell", "can't say", "cannot say", "[deleted]", "[removed]", "discard",
    "discarded", "corrupted", "corrupt", "bad data", "void", "未知", "未标注", "未标记", "缺失", "待定", "不明", "不详",
    "暂无", "不清楚", "看不出", "无法判断", "无法确定", "不知道", "说不清", "未分類", "未標註", "未標記", "未定義",
    "不詳", "分からない", "わからない", "判断不能", "ラベルなし", "ラベル無し", "データなし", "該当なし", "回答なし",
    "미상", "미분류", "알 수 없음", "알수없음", "모름", "해당 없음", "해당없음", "라벨 없음", "레이블 없음",
    "데이터 없음", "없음", "n.d", "n. d", "n/d", "s/d", "n/c", "n/r", "ns/nc", "ns/nr", "k.a", "k. a", "b.d", "b/d",
    "n/b",
    # German, Dutch, Danish, Norwegian, Swedish
    "unbekannt", "keine angabe", "unbestimmt", "undefiniert", "weiß nicht", "weiss nicht", "onbekend", "weet niet",
    "niet van toepassing", "n.v.t", "ukendt", "ukjent", "okänd", "vet ej", "vet inte", "ved ikke", "vet ikke", "saknas",
    "mangler", "ontbreekt", "fehlt", "fehlend",
    # French, Spanish, Portuguese, Italian, Romanian, Catalan
    "inconnu", "inconnue", "indéterminé", "indéfini", "manquant", "sans objet", "ne sait pas", "nsp", "desconocido",
    "desconocida", "indefinido", "indeterminado", "faltante", "no aplica", "no sabe", "no contesta", "no procede",
    "sin etiqueta", "desconhecido", "desconhecida", "indefinida", "ausente", "não se aplica", "não sei", "não sabe",
    "não informado", "sconosciuto", "sconosciuta", "indefinito", "indeterminato", "mancante", "non applicabile",
    "non so", "necunoscut", "nedefinit", "lipsă", "nu se aplică", "nu știu", "desconegut",
    # Slavic languages, Greek
    "неизвестно", "неизвестный", "неизвестная", "затрудняюсь ответить", "отсутствует", "н/д", "невідомо", "невідомий",
    "відсутній", "неизвестен", "непознато", "nieznane", "nieznany", "nieznana", "nieokreślone", "nieoznaczone",
    "nie wiem", "nie dotyczy", "neznámé", "neznámý", "neznáme", "neurčeno", "neurčené", "nevím", "chybí", "nepoznato",
    "nepoznat", "neznano", "άγνωστο", "άγνωστοσ", "απροσδιόριστο",
    # Turkish, Finnish, Hungarian, Estonian, Latvian, Lithuanian
    "bilinmiyor", "bilinmeyen", "belirtilmemiş", "tanımsız", "etiketsiz", "kayıp", "tuntematon", "ei tiedossa",
    "puuttuu", "en tiedä", "ismeretlen", "nem ismert", "hiányzik", "nem tudom", "teadmata", "tundmatu", "nezināms",
    "nežinoma",
    # Arabic, Persian, Hebrew, Hindi, Urdu, Bengali
    "غير معروف", "غير محدد", "غير مصنف", "مجهول", "لا أعرف", "لا ينطبق", "مفقود", "نامعلوم", "نامشخص", "ناشناخته",
    "نمی‌دانم", "לא ידוע", "לא מוגדר", "לא ברור", "לא מסווג", "חסר", "अज्ञात", "अपरिभाषित", "अस्पष्ट", "पता नहीं",
    "लागू नहीं", "نا معلوم", "অজানা",
    # Thai, Vietnamese, Indonesian and Malay, Filipino
    "ไม่ทราบ", "ไม่ระบุ", "ไม่แน่ใจ", "ไม่มี", "ไม่รู้", "không rõ", "không biết", "không áp dụng", "tidak diketahui",
    "tidak tahu", "tak diketahui", "hindi alam",
))
PERHAPS_MISSING = frozenset((
    "none", "empty", "abstain", "unverified", "unclassified", "unrated", "tie", "skip", "skipped", "invalid",
    "error", "ignore", "ignored", "deleted", "removed", "unsure", "not sure", "unclear", "undecided",
    "indeterminate", "unklar", "unentschieden", "onduidelijk", "uklart", "oklart",
    "неясно", "непонятно", "незрозуміло", "niejasne", "ασαφέσ", "epäselvä", "belirsiz", "tidak jelas", "无", "空",
    "なし", "нет", "aucun", "ninguno", "keine", "yok", "boş", "brak", "vide", "vacío", "leer", "leeg", "nessuno",
    "nenhum", "geen",
))
"""Labels such as the stance "none" are common; only one of few rows is doubtful."""
SAYS_MISSING = re.compile(
    r"(un|not[ _-]|non[ _-]?)(labell?ed|annotated|tagged|rated|known|defined|specified|classified|assigned|categori[sz]ed|set|"
    r"determined|available|given|applicable|sure|recorded|reviewed|verified|checked|decided|clear|annot\w*|etiquet\w*|"
    r"étiquet\w*|class\w*|défini\w*|determin\w*|détermin\w*|rens\w*|précis\w*|spécif\w*|specif\w*|defin\w*|catalog\w*|assegn\w*)"
    r"([ _-](data|yet))?"
    r"|(no|kein\w*|ohne|sin|sem|sans|senza|nessun\w*|aucun\w*|geen|zonder|uden|utan|uten|ingen|brak|bez|bez\w?|fără|нет|немає|"
    r"без|не|ei|ilman|nincs\w*|χωρί[ςσ]|tanpa|tidak ada|không có|ไม่มี|بدون|ללא|אין)"
    r"[ _-]?(data|label\w*|gold|answer|annot\w*|angab\w*|zuordnung|antwort|wert\w*|dat[oeiy]\w*|danych|údaj\w*|etiket\w*|"
    r"etiquet\w*|étiquet\w*|clasif\w*|rótul\w*|inform\w*|données|дан\w*|dan\w*|метк\w*|мітк\w*|ответ\w*|указан\w*|размечен\w*|определ\w*|визнач\w*|"
    r"известно|clas+if\w*|adat\w*|tieto\w*|tunnis\w*|ετικέτα\w*|nhãn|ป้ายกำกับ|ข้อมูล|تصنيف|تسمية|بيانات|תווית|סיווג|נתונים)"
    r"|(nicht|niet|ikke|ej|inte|não|nao|no|nie|nem|nu|ne|tidak|belum|chưa|không|לא|غير|δεν έχει)[ _-]?"
    r"(zugeordnet|bestimmt|definiert|klassifiziert|bewertet|angegeben|gelabelt|annotiert|verfügbar|zutreffend|bekannt|gelabeld|"
    r"bepaald|bekend|ingevuld|geclassificeerd|angi\w*|oplyst|klassificer\w*|definer\w*|merket|märkt|merkitty|clas+ific\w*|"
    r"rotul\w*|etiquet\w*|anotad\w*|defin\w*|informad\w*|especific\w*|disponib\w*|dostępn\w*|określon\w*|oznaczon\w*|"
    r"sklasyfikowan\w*|címkézett|besorolt|clasificat\w*|dilabeli|berlabel|diklasifikasi\w*|diberi label|gán nhãn|xác định|"
    r"phân loại|có nhãn|מסווג|מוגדר|ידוע|مصنف|معروف|محدد|معنون|متاح|επισημανθεί|ταξινομηθεί|determin\w*|applic\w*)"
    r"|(लेबल|टैग|डेटा|जानकारी|라벨|레이블|데이터|ラベル|データ|情報|分類)[ _]?(नहीं|없음|無|無し|なし|不可)(है)?"
    r"|(pending|awaiting|to be)\b.*|needs? (review|check|label|annotation|verif)\w*"
    r"|(暂?[无無]|未|待|缺少?|[没沒]有?|不)([标標][注註]?[签籤]?[记記]?|[注註][释釋]?|知|定|明|[详詳]|分[类類]?|[归歸][类類]|"
    r"[数數][据據]|[审審]核?|[处處]理|填写?|[确確]定|打[标標][签籤]?|[评評])([类類]|的)?"
)
"""Words for "no", "not" and "without", with those for "data", "label" and "given", in several languages."""
REFUSES = re.compile(
    r"(error|exception|traceback|failed|timeout)\b[:\s].*|[45]\d\d [a-z].*|.*\brate limit.*|as an? (ai|llm|language)\b.*"
    r"|(i'?m|i am) (sorry|unable|not able)\b.*|i (can'?t|cannot|can not)\b.*"
    r"|(对不起|抱歉|很抱歉|作为一个?(ai|人工智能|语言模型)).*",
    re.DOTALL,
)
"""What a program that was asked for labels answers in place of one."""
# fmt: on
