"""Records beside the model they speak about: the model folder keeps them, and its card is built from them."""

from __future__ import annotations

from pathlib import Path

from atonce.core.errors import InputError
from atonce.core.files import write_json, write_text
from atonce.core.records import Record, conditions
from atonce.model_files import is_model_folder, load_model, model_card, model_identity


def keep_record(record: Record, folder: Path | str) -> int:
    """Add a record to a model folder: ``records.json``, and ``README.md`` built again from all its records.

    A record of the same measurement (the same metrics under the same conditions, whatever the machine and commit) takes the
    place of the earlier one. The weights are not touched.

    Args:
        record: Of samples of that folder's model.
        folder: A model folder of ours.

    Returns:
        How many records the folder now has.

    Raises:
        InputError: The folder is none of ours, or the record is of other weights; nothing was changed.
        StorageError: It cannot be written.
    """
    folder = Path(folder)
    if not is_model_folder(folder):
        raise InputError(f"{folder} is not a model folder of atonce: a record is kept beside the model it is about")
    model = load_model(folder)
    here = model_identity(model)
    if record.model is None or record.model.rpartition(" ")[2] != here.rpartition(" ")[2]:
        raise InputError(f"the record is of {record.model or 'given images'}, {folder} holds {here}: nothing was changed")
    model.records[:] = [*(each for each in model.records if _measurement(each) != _measurement(record)), record]
    write_json(folder / "records.json", [each.as_dict() for each in model.records])
    write_text(folder / "README.md", model_card(model))
    return len(model.records)


def _measurement(record: Record) -> tuple[object, ...]:
    told = conditions(record)
    same = tuple(words for name, words in told.items() if name not in ("device", "commit", "calls", "model"))
    sources = (record.extractor, record.reference, record.data, record.teacher, record.held_out)
    digests = tuple(None if source is None else source.digest for source in sources)
    return (*same, tuple(record.metrics), *digests, record.rounding)
