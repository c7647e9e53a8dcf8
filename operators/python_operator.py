"""Operator: the public class for batch-level code; and how its annotations and schemas are read.

The annotation of `batch` picks pa.RecordBatch, pl.DataFrame or pd.DataFrame. What comes back is
held to the declared schema per batch and never inferred by running user code (hazard 59). Batches
of a stream with event time hold `_time`; see `EventTimes` in batch_processor.py for what comes out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal

import pyarrow as pa

from penstock.elements.errors import PlanError
from penstock.elements.row_hints import function_hints
from penstock.elements.row_schema import is_row_class, row_schema

from .broadcast import broadcast_hint
from .context import Context
from .declared import KeyedDeclaration, Output, check_declarations, declarations
from .event_time_column import without_time_field
from .frozen import Frozen
from .processor import MAIN

FrameKind = Literal["arrow", "polars", "pandas"]


class Operator(Frozen):
    """Subclass, annotate and implement `process`; declare the output as `returns`.

    `returns` is a row class or a pa.Schema; left out, the output has the input's schema. Side
    outputs are declared as `Output`s: `yield self.bad(batch)`. Batch borders carry no meaning.
    After open(), public attributes are frozen; names that begin with `_` are scratch.
    """

    returns: Any = None
    _penstock_broadcast: Any = None

    def open(self, ctx: Context) -> None:
        """Connect, load, declare operator_state."""

    def process(self, batch: Any, ctx: Context) -> Iterable[Any] | None:
        """Take a batch: yield batches (and sides), or return None."""
        raise TypeError(f"{type(self).__name__} does not implement process(batch, ctx)")

    def process_broadcast(self, row: Any, ctx: Context) -> None:
        """A row of the broadcast stream, which every subtask gets; fills BroadcastState only."""
        raise TypeError(f"{type(self).__name__} does not implement process_broadcast")

    def on_end(self, ctx: Context) -> Iterable[Any] | None:
        """No further rows will come: yield what was held back.

        Lists of `operator_state` are emptied behind it, and before_snapshot is not called again.
        """
        return None

    def before_snapshot(self, ctx: Context) -> None:
        """A checkpoint is taken: bring what must survive into `operator_state`."""

    def close(self) -> None:
        """Release what open() took. Not called when the process is killed."""

    def __init_subclass__(cls, **options: Any) -> None:
        """Resolve row classes while the frame that defines them is alive."""
        super().__init_subclass__(**options)
        check_declarations(cls)
        if is_row_class(cls.__dict__.get("returns")):
            row_schema(cls.returns)
        if cls.process_broadcast is not Operator.process_broadcast:
            cls._penstock_broadcast = broadcast_hint(cls.process_broadcast)
        if cls.process is not Operator.process:
            cls._penstock_frame = frame_kind(cls.process, cls.__name__)

    _penstock_frame: FrameKind = "arrow"


def frame_kind(function: Callable[..., Any], who: str) -> FrameKind:
    """What kind of frame a function takes, by the annotation of its first real parameter."""
    for name, hint in function_hints(function).items():
        if name in ("self", "ctx", "return") or hint is Context:
            continue
        module = str(getattr(hint, "__module__", ""))
        label = getattr(hint, "__name__", str(hint))
        if label == "DataFrame" and module.startswith("polars"):
            return "polars"
        if label == "DataFrame" and module.startswith("pandas"):
            return "pandas"
        if hint in (pa.RecordBatch, Any):
            return "arrow"
        raise PlanError(
            f"{who}: it takes {label}\n"
            "  Annotate the batch as pa.RecordBatch, pl.DataFrame or pd.DataFrame. For rows there\n"
            "  are map, flat_map and ps.KeyedOperator."
        )
    return "arrow"


def declared_schema(returns: Any, who: str) -> pa.Schema:
    """The schema that `returns` declares, a row class or a pa.Schema; without `_time`."""
    if isinstance(returns, pa.Schema):
        return without_time_field(returns)
    if is_row_class(returns):
        return row_schema(returns)
    raise PlanError(
        f"{who}: returns={returns!r} is not a schema\n"
        "  Give a row class (dataclass, NamedTuple, pydantic model) or a pa.Schema."
    )


def operator_outputs(operator: Operator, in_schema: pa.Schema) -> dict[str, pa.Schema]:
    """Each output's schema, without `_time`."""
    cls = type(operator)
    who = cls.__name__
    if cls.process is Operator.process:
        raise PlanError(f"{who} does not implement process(self, batch, ctx)")
    found = declarations(cls)
    for name, declared in found.items():
        if isinstance(declared, KeyedDeclaration):
            raise PlanError(
                f"{who}.{name}: keyed state and timers belong to a KeyedOperator\n"
                "  An Operator sees batches of all keys; ctx.operator_state() keeps what it needs."
            )
    main = operator.returns
    outputs = {MAIN: without_time_field(in_schema) if main is None else declared_schema(main, who)}
    for name, declared in found.items():
        if isinstance(declared, Output):
            outputs[name] = declared.schema
    return outputs


def to_frame(batch: pa.RecordBatch, kind: FrameKind) -> Any:
    """The batch as user code wants it; a frame that is kept keeps the input's memory (hazard 4)."""
    if kind == "arrow":
        return batch
    if kind == "polars":
        import polars

        return polars.from_arrow(batch)
    return batch.to_pandas()


def to_batches(made: Any, declared: pa.Schema) -> Iterator[pa.RecordBatch]:
    """What user code gave back, as batches; raises TypeError for anything that is no frame."""
    if isinstance(made, pa.RecordBatch):
        yield made
    elif isinstance(made, pa.Table):
        yield from made.to_batches()
    elif hasattr(made, "to_arrow"):
        yield from made.to_arrow().to_batches()
    elif hasattr(made, "iloc"):
        known = [declared.field(n) for n in made.columns if n in declared.names]
        typed = pa.schema([pa.field(f.name, f.type) for f in known])
        if len(known) == len(made.columns):
            yield pa.RecordBatch.from_pandas(made, schema=typed, preserve_index=False)
        else:
            yield pa.RecordBatch.from_pandas(made, preserve_index=False)
    else:
        raise TypeError(
            f"it gave back {type(made).__name__}; give pa.RecordBatch, pa.Table, pl.DataFrame "
            "or pd.DataFrame"
        )


def frames_of(made: Any) -> list[Any]:
    """Normalise what a batch function gives: nothing, one frame, or an iterable of frames."""
    if made is None:
        return []
    if isinstance(made, pa.RecordBatch | pa.Table) or hasattr(made, "to_arrow"):
        return [made]
    if hasattr(made, "iloc"):
        return [made]
    return list(made)
