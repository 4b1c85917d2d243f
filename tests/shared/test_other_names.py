"""Names from other trainers are answered with memsup's own, and never with one that does not exist."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from memsup.shared import other_names
from memsup.shared.loading import load
from memsup.shared.settings import SettingsError, keys


@pytest.mark.parametrize("name", other_names._NAMES)
def test_every_answer_names_a_setting_that_there_is(name: str) -> None:
    setting, what = other_names._NAMES[name]
    assert setting is None or setting in keys()
    assert setting is not None or what
    with pytest.raises(SettingsError, match=setting or "no such setting"):
        load(job_file=None, flags=[f"{name}=1"], environment={})


def test_a_name_of_memsups_own_is_answered_with_itself() -> None:
    """A setting that is added later may be called as somebody else's, for which there was another answer."""
    for key in keys():
        setting, _ = other_names._NAMES.get(key.rpartition(".")[2], (key, ""))
        assert setting == key


def test_what_people_know_from_transformers_is_known() -> None:
    """What `TrainingArguments` has and the table has not is rare, or for many machines."""
    package = importlib.util.find_spec("transformers")
    assert package is not None
    assert package.origin is not None
    source = Path(package.origin).with_name("training_args.py").read_text(encoding="utf-8")
    names = set(re.findall(r"^    (\w+): [^=\n]+ = field\(", source, flags=re.MULTILINE))
    assert {"num_train_epochs", "save_steps"} < names
    assert len(names & other_names._NAMES.keys()) >= 45
