"""Settings of operations: `operations.yaml` in the home (or the file that EPIC_OMOP_OPERATIONS names), checked.

Without the file the defaults hold. Secrets are never written there: a setting names the environment variable (`…_env`) or
the file (`…_file`) that holds one, and the address of a webhook, which holds its token, is one of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic_core import ErrorDetails

from pipeline.core.alert_settings import CHANNEL_KINDS, AlertSettings
from pipeline.core.errors import ConfigurationError
from pipeline.core.retention_settings import RetentionSettings
from pipeline.core.settings import Settings
from pipeline.core.settings_file import SettingsEntry, SettingsFile, nearest
from pipeline.core.settings_problems import control_characters, problem, setting_name

__all__ = ["OperationsSettings", "load_operations", "operations_file"]

_SEE = "See docs/alerts.md and docs/retention.md."


class OperationsSettings(BaseModel):
    """The sections of the file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    alerts: AlertSettings = AlertSettings()
    retention: RetentionSettings = RetentionSettings()


def operations_file(settings: Settings) -> Path:
    """The file in which they stand, whether it exists or not."""
    return settings.operations or settings.home / "operations.yaml"


def load_operations(settings: Settings) -> OperationsSettings:
    """Read and check the file; no secret is read. Raises ConfigurationError with file, line and the nearest key."""
    file = operations_file(settings)
    if not file.exists():
        if settings.operations is not None:
            raise ConfigurationError(
                f"EPIC_OMOP_OPERATIONS names {file}, which does not exist.", "Write the file, or unset the variable."
            )
        return OperationsSettings()
    source = SettingsFile(file, _SEE)
    entries = [
        source.entry(name, line, node, f"`{name}`")
        for name, (line, node) in source.top(tuple(OperationsSettings.model_fields)).items()
    ]
    return OperationsSettings.model_validate({entry.name: _section(entry) for entry in entries})


def _section(entry: SettingsEntry) -> BaseModel:
    model = OperationsSettings.model_fields[entry.name].annotation
    assert isinstance(model, type)
    assert issubclass(model, BaseModel)
    problems = [
        f"{entry.place(path)}: {setting_name(path)}: holds a line break or another control character."
        for path in control_characters(entry.values)
    ]
    try:
        if not problems:
            return model.model_validate(_beside(entry.file.parent, entry.values))
    except ValidationError as error:
        problems = [_described(item, entry, model) for item in error.errors(include_input=False, include_url=False)]
    raise ConfigurationError(f"Settings of `{entry.name}` are wrong. {' '.join(problems)}", _SEE)


def _beside(folder: Path, value: Any, key: str = "") -> Any:
    """Paths (`…_file`) are relative to the file that names them, so that the folder can be moved as a whole."""
    if isinstance(value, Mapping):
        return {name: _beside(folder, inner, str(name)) for name, inner in value.items()}
    if isinstance(value, list):
        return [_beside(folder, inner) for inner in value]
    return folder / Path(value).expanduser() if key.endswith("_file") and isinstance(value, str) else value


def _described(item: ErrorDetails, entry: SettingsEntry, model: type[BaseModel]) -> str:
    """`file:line: key: what is wrong.` of one problem that pydantic found."""
    words = problem(item)
    location = _written(item["loc"])
    place = entry.place(location)
    key = setting_name(location)
    if item["type"] == "extra_forbidden":
        return f"{place}: there is no key {key!r}.{_close(item['loc'], model)}"
    return f"{place}: {key + ': ' if key else ''}{words}{'' if words.endswith('?') else '.'}"


def _written(location: tuple[int | str, ...]) -> tuple[int | str, ...]:
    """The path as it stands in the file: pydantic names a channel by its position and its kind."""
    return (*location[:2], *location[3:]) if _names_a_channel(location) else location


def _names_a_channel(location: tuple[int | str, ...]) -> bool:
    return location[:1] == ("channels",) and len(location) > 2 and location[2] in CHANNEL_KINDS


def _close(location: tuple[int | str, ...], model: type[BaseModel]) -> str:
    """A secret that is written down is answered with where it belongs, a slip with the key that is most like it."""
    name = str(location[-1])
    inner: type[BaseModel] | None = CHANNEL_KINDS[location[2]] if _names_a_channel(location) else None
    for part in () if inner else location[:-1]:
        if isinstance(part, str) and part in (inner or model).model_fields:
            inner = _inner_model((inner or model).model_fields[part].annotation)
    known = set((inner or model).model_fields)
    if f"{name}_env" in known:
        return f" It is a secret: name the variable or the file that holds it as {name}_env or {name}_file."
    return nearest(name, known)


def _inner_model(annotation: Any) -> type[BaseModel] | None:
    """The model in `Model | None`, `Mapping[str, Model]` or `tuple[Model, ...]`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((one for part in getattr(annotation, "__args__", ()) if (one := _inner_model(part))), None)
