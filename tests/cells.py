"""What the notebooks' cells should hold."""

from ltkd.params import StudyParameters


def parameters_cell() -> str:
    """Source of the notebooks' parameters cell: each key's type, default and meaning."""
    lines = []
    for name, info in StudyParameters.model_fields.items():
        value = info.default
        kind = "object" if value is None else type(value).__name__
        lines.append(f"{name}: {kind} = {value!r}  # {info.description}")
    return "\n".join(lines)
