"""Rows as Parquet, for tools that read tables: columns with the types of the stage's record, and back without loss."""

import json
from collections.abc import Callable, Iterable, Iterator
from itertools import islice
from pathlib import Path
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

from longshot.data.records import Record, Row
from longshot.errors import UserError
from longshot.files import atomic_path

if TYPE_CHECKING:
    import pyarrow

ROWS_AT_ONCE = 256
"""Rows of a row group: scenes are long rows, and memory mustn't grow with the corpus."""
STAGE_KEY = b"longshot.stage"
PLAIN = {str: "string", int: "int64", float: "float64", bool: "bool_"}
"""JSON's plain values, by the name of their type in pyarrow."""

Codec = tuple["pyarrow.DataType", Callable[[Any], Any], Callable[[Any], Any]]
"""A column's type, what makes its values of JSON's, and what makes JSON's of its."""


def write_parquet(path: Path, rows: Iterable[Row], kind: type[Record], stage: str) -> int:
    """Write a stage's rows, records of `kind`, atomically, and return how many there were; UserError for a row that isn't one."""
    pa, pq = _pyarrow()
    schema, encode, _ = _table(kind)
    count, left = 0, iter(rows)
    with (
        atomic_path(path) as temporary,
        pq.ParquetWriter(
            temporary, schema.with_metadata({STAGE_KEY: stage.encode()}), compression="zstd"
        ) as file,
    ):
        while group := list(islice(left, ROWS_AT_ONCE)):
            # Through the record, so that what a row leaves out is there, and what it has too much is told of.
            checked = [encode(kind.of(row, f"row {count + n}").row()) for n, row in enumerate(group, start=1)]
            file.write_table(pa.Table.from_pylist(checked, schema))
            count += len(group)
    return count


def stage_of(path: Path) -> str:
    """Return the stage whose rows a Parquet file holds, "" where it doesn't say."""
    return (_opened(path).schema_arrow.metadata or {}).get(STAGE_KEY, b"").decode("utf-8", "replace")


def read_parquet(path: Path, kind: type[Record]) -> Iterator[Row]:
    """Yield the rows, records of `kind`, as they were written; UserError names the first that isn't one."""
    _, _, decode = _table(kind)
    number = 0
    for batch in _batches(path):
        for row in batch:
            number += 1
            where = f"{path}, row {number}"
            try:
                decoded = decode(row)
            except (ValueError, TypeError, AttributeError, KeyError) as error:
                raise UserError(f"{where}: isn't a row of this stage ({error})") from error
            yield kind.of(decoded, where).row()


def read_table(path: Path) -> Iterator[Row]:
    """Yield the rows of any Parquet file as plain values, empty cells left out."""
    for batch in _batches(path):
        for row in batch:
            yield {name: value for name, value in row.items() if value is not None}


def _batches(path: Path) -> Iterator[list[Row]]:
    file = _opened(path)
    try:
        for batch in file.iter_batches(ROWS_AT_ONCE):
            yield batch.to_pylist()
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: damaged ({str(error).splitlines()[0]})") from error


def _opened(path: Path):
    pa, pq = _pyarrow()
    try:
        return pq.ParquetFile(path, memory_map=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"{path}: not a Parquet file that can be read ({str(error).splitlines()[0]})"
        ) from error


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'longshot[parquet]'") from error
    return pyarrow, pyarrow.parquet


# -- columns of records
def _table(kind: type[Record]) -> tuple["pyarrow.Schema", Callable[[Row], Row], Callable[[Row], Row]]:
    pa, _ = _pyarrow()
    struct, encode, decode = _record(kind)
    return pa.schema(list(struct)), encode, decode


def _record(kind: type[Record]) -> Codec:
    pa, _ = _pyarrow()
    codecs = {name: _codec(field.annotation) for name, field in kind.model_fields.items()}
    struct = pa.struct([pa.field(name, codec[0]) for name, codec in codecs.items()])

    def encode(row: Row) -> Row:
        return {name: codecs[name][1](value) for name, value in row.items()}

    def decode(row: Row) -> Row:
        # A column nobody wrote is as good as none: the record's own default stands for it.
        return {name: codecs[name][2](row[name]) for name in codecs if name in row}

    return struct, encode, decode


def _codec(of: Any) -> Codec:
    """Return how a field of a record becomes a column."""
    pa, _ = _pyarrow()
    origin, parts = get_origin(of), get_args(of)
    if of in PLAIN:
        return getattr(pa, PLAIN[of])(), _same, _same
    if origin is Literal:
        return pa.string(), _same, _same
    if origin in (Union, UnionType) and NoneType in parts and len(parts) == 2:
        inner, encode, decode = _codec(next(part for part in parts if part is not NoneType))
        return inner, _unless_none(encode), _unless_none(decode)
    if origin in (tuple, list) and len({part for part in parts if part is not ...}) == 1:
        inner, encode, decode = _codec(parts[0])
        return pa.list_(inner), _each(encode), _each(decode)
    if origin is dict and parts[0] is str and parts[1] in PLAIN:
        value = getattr(pa, PLAIN[parts[1]])()
        return pa.map_(pa.string(), value), lambda pairs: list(pairs.items()), dict
    if isinstance(of, type) and issubclass(of, Record):
        return _record(of)
    return pa.string(), _dumps, json.loads  # facts of any shape stay one text


def _same(value: Any) -> Any:
    return value


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _unless_none(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda value: None if value is None else change(value)


def _each(change: Callable[[Any], Any]) -> Callable[[Any], Any]:
    return lambda values: [change(value) for value in values]
