"""Finds the records of datasets as the `datasets` library keeps them: parquet, arrow, the Hub.

Knows files, columns and splits, not what a record means. Its libraries are optional.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from eagle.errors import DataError
from eagle.train.data import records
from eagle.train.data.records import Record
from eagle.train.spec import SourceSpec

__all__ = ["READERS", "files_below", "folder", "hub"]

_TEXTS = ("messages", "conversations", "text")
_COLUMNS = ("id", *_TEXTS, "system", "tools", "functions")
_ROWS = 256  # of a table that are in memory at once


def folder(path: Path, split: str | None) -> Iterator[Record]:
    """Yield the records of all files of a folder, in the order of their names.

    Args:
        path: a folder of `Dataset.save_to_disk` or `DatasetDict.save_to_disk`, or one with files
            of the kinds in `READERS`, at any depth.
        split: which part, where there are parts: a folder, or a word in the files' names.

    Raises:
        DataError: there is no such part or no such file, or one of them cannot be read.
    """
    if (path / "dataset_dict.json").is_file():
        files = _saved(_part(path, split or "train"), None)
    elif (path / "state.json").is_file():
        files = _saved(path, split)
    else:
        files = _named(path, split)
    for file in files:
        yield from READERS[file.suffix](file)


def _part(path: Path, split: str) -> Path:
    if (path / split).is_dir():
        return path / split
    parts = sorted(inner.name for inner in path.iterdir() if inner.is_dir())
    raise DataError(f"{path} has no split {split!r}, but {', '.join(parts) or 'none'}")


def _saved(path: Path, split: str | None) -> list[Path]:
    """Return the files of a dataset that `datasets` saved: others there may be its caches."""
    try:
        state = json.loads((path / "state.json").read_text())
        files = [path / entry["filename"] for entry in state["_data_files"]]
        own = state.get("_split")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DataError(f"{path / 'state.json'} is not one of `datasets`: {error}") from error
    if split not in (None, own):
        raise DataError(f"{path} has no split {split!r}, but {own or 'none'}")
    return files


def _named(path: Path, split: str | None) -> list[Path]:
    """Return the files of a split; without one, of ``train`` if any is named so, or else all."""
    files = files_below(path)
    if not files:
        raise DataError(f"{path} holds no file that ends with {', '.join(READERS)}")
    word = re.compile(rf"(?:^|[^a-zA-Z]){re.escape(split or 'train')}(?:$|[^a-zA-Z])")
    named = [file for file in files if word.search(str(file.relative_to(path).with_suffix("")))]
    if split is not None and not named:
        raise DataError(f"{path}: no file of it is named for the split {split!r}")
    return sorted(named or files)


def files_below(path: Path) -> list[Path]:
    """Return the files of a folder, at any depth, that could be read, in the order of names."""
    return sorted(file for file in path.rglob("*") if file.suffix in READERS and file.is_file())


def parquet(path: Path) -> Iterator[Record]:
    """Yield the rows of a parquet file, counted from 0.

    Raises:
        DataError: it cannot be read, has no column of the wanted ones, or a library is missing.
    """
    arrow, reader = _need("pyarrow", path), _need("pyarrow.parquet", path)
    try:
        with reader.ParquetFile(path) as file:
            columns = _wanted(file.schema_arrow.names, path)
            batches = file.iter_batches(batch_size=_ROWS, columns=columns)
            yield from _rows(batches, path)
    except (arrow.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def arrow(path: Path) -> Iterator[Record]:
    """Yield the rows of an arrow file, a stream or not, counted from 0; see `parquet`."""
    library, ipc = _need("pyarrow", path), _need("pyarrow.ipc", path)
    try:
        with library.memory_map(str(path)) as source:
            try:
                reader = ipc.open_stream(source)
                batches = iter(reader)
            except library.ArrowInvalid:
                reader = ipc.open_file(source)
                batches = (reader.get_batch(i) for i in range(reader.num_record_batches))
            columns = _wanted(reader.schema.names, path)
            yield from _rows((batch.select(columns) for batch in batches), path)
    except (library.ArrowException, OSError) as error:
        raise DataError(f"{path} cannot be read: {_first_line(error)}") from error


def _wanted(names: list[str], path: Path) -> list[str]:
    columns = [name for name in _COLUMNS if name in names]
    if not set(columns) & set(_TEXTS):
        raise DataError(
            f"{path} has the columns {', '.join(names)}; one of them should be messages, "
            "conversations or text"
        )
    return columns


def _rows(batches: Any, path: Path) -> Iterator[Record]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for record in batch.slice(start, _ROWS).to_pylist():
                # A column that another source's rows fill is null here.
                yield (
                    f"{records.name_of(path)}:{number}",
                    {k: v for k, v in record.items() if v is not None},
                )
                number += 1


def hub(source: SourceSpec) -> Iterator[Record]:
    """Yield the rows of a dataset on the Hugging Face Hub as they arrive, counted from 0.

    Raises:
        DataError: it cannot be read, or `datasets` is missing.
    """
    library = _need("datasets", Path(source.path))
    try:
        rows = library.load_dataset(
            source.path,
            source.subset,
            split=source.split or "train",
            revision=source.revision,
            streaming=True,
        )
        for number, record in enumerate(rows):
            yield (
                f"{source.path}:{number}",
                {k: v for k, v in record.items() if k in _COLUMNS and v is not None},
            )
    except Exception as error:  # the network, the Hub and every file format raise their own
        raise DataError(
            f"data.sources: {source.path!r} is no file here, and cannot be read from the Hugging "
            f"Face Hub: {type(error).__name__}: {_first_line(error)}"
        ) from error


READERS: dict[str, Callable[[Path], Iterator[Record]]] = {
    ".parquet": parquet,
    ".arrow": arrow,
    ".jsonl": records.json_lines,
    ".txt": records.whole,
}
"""What reads a dataset's file, by suffix."""


def _need(module: str, path: Path) -> Any:
    """Import an optional library.

    Raises:
        DataError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise DataError(
            f"reading {path} needs {module.partition('.')[0]}, which is not installed; run "
            "pip install 'eagle-decoding[datasets]'"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
