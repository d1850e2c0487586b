"""The data that AvatarForge carries: models, migrations, proto."""

from pathlib import Path

_PACKAGE = Path(__file__).parent


def package_data(name: str) -> Path:
    """Return the path of the folder or file `name` in the package's own data.

    A wheel holds it in `avatarforge/_carried/`; a source tree has it beside the package. Raises
    `FileNotFoundError` when neither does.
    """
    for folder in (_PACKAGE / "_carried", _PACKAGE.parent):
        if (folder / name).exists():
            return folder / name
    raise FileNotFoundError(
        f"AvatarForge's own data has no {name!r}: it is neither in {_PACKAGE / '_carried'} nor in "
        f"{_PACKAGE.parent}. Install AvatarForge again, or work in a complete checkout."
    )
