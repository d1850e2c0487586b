"""How values travel between processes, which may be of two releases while one is rolled out."""

from dataclasses import MISSING, fields
from typing import Any, TypeVar

_Class = TypeVar("_Class", bound=type)


def pickle_by_name(cls: _Class) -> _Class:
    """Pickle a dataclass by the names of its fields; its decorator stands before `dataclass`.

    Frozen ones with slots are pickled by position otherwise, so that a field in their middle shifts the
    others for a process that does not know it. Here a field that the sender lacks takes its default, and one
    that the receiver lacks is dropped. One that has its default does not travel: its value may be of a class
    that the receiver lacks, and pickle fails there before any field can be dropped.
    """
    known = {field.name: field for field in fields(cls)}
    defaults = {
        name: field.default if field.default_factory is MISSING else field.default_factory()
        for name, field in known.items()
    }

    def get_state(self: Any) -> dict[str, Any]:
        state = {}
        for name, default in defaults.items():
            value = getattr(self, name)
            # Equal values of other types, as `True` and 1, are others where they arrive.
            if value is not default and (type(value) is not type(default) or value != default):
                state[name] = value
        return state

    def set_state(self: Any, state: dict[str, Any]) -> None:
        for name, field in known.items():
            if name in state:
                value = state[name]
            elif field.default_factory is not MISSING:
                value = field.default_factory()
            elif field.default is not MISSING:
                value = field.default
            else:
                raise TypeError(f"{cls.__name__} came without {name}: the sender is of another release")
            # Around the class's own, which is frozen.
            object.__setattr__(self, name, value)

    cls.__getstate__ = get_state  # type: ignore[assignment,method-assign]  # object's takes no argument here
    cls.__setstate__ = set_state  # type: ignore[attr-defined]  # object has none
    return cls
