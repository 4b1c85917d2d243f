"""What torch has pickled into weights, told from the pickle's own words: nothing of it is run."""

from __future__ import annotations

import os
import pickletools
import re
import zipfile
from pathlib import Path

from memsup.shared.data.errors import InputError
from memsup.shared.files import open_regular

_MOST_PICKLE_BYTES = 16 << 20
_OF_WEIGHTS = re.compile(
    r"torch(\.\S*)? \S+|collections (OrderedDict|Counter)|_codecs encode|(__builtin__|builtins) (set|bytearray)"
)
"""What pickled tensors are made of."""
_INSIDE = frozenset(("state_dict", "model_state_dict", "model", "net", "network", "module_state_dict"))
"""What programs call the weights in a checkpoint that holds more than those."""


def names_in(file: Path) -> list[str] | None:
    """The names of the weights in a file of torch's. It is None for one in an older format, or with too many. Raises InputError
    for one that holds other than weights, and OSError.
    """
    fd, _ = open_regular(file)
    with os.fdopen(fd, "rb") as opened:
        if not zipfile.is_zipfile(opened):
            return None
        with zipfile.ZipFile(opened) as archive:
            pickled = next((part for part in archive.infolist() if part.filename.endswith("data.pkl")), None)
            if pickled is None or pickled.file_size > _MOST_PICKLE_BYTES or pickled.compress_type != zipfile.ZIP_STORED:
                return None
            content = archive.read(pickled)
    words: list[str] = []
    try:
        for code, value, _ in pickletools.genops(content):
            if code.name == "STACK_GLOBAL":
                value = " ".join(words[-2:])
            if code.name in ("GLOBAL", "STACK_GLOBAL") and not _OF_WEIGHTS.fullmatch(str(value)):
                raise InputError(
                    f"{file} holds objects of a program ({str(value).replace(' ', '.')[:100]}) and not weights alone, and "
                    "memsup runs none: save the model with save_pretrained in the program that made it."
                )
            if "UNICODE" in code.name:
                words.append(str(value))
    except ValueError as error:
        raise InputError(f"{file} cannot be read ({error}): copy or fetch it again from where the model came from.") from None
    if (inside := next((word for word in words if word in _INSIDE), None)) is not None:
        raise InputError(
            f"{file} is a checkpoint of a program, whose weights lie inside of its {inside!r}, where nobody would read them: "
            "save the model with save_pretrained in the program that made it."
        )
    return sorted({word for word in words if re.search(r"\.(weight|bias)$", word)}) or None
