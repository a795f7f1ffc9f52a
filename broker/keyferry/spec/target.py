"""Where the token is put: the managed Secret and the files."""

from collections.abc import Iterator, Mapping
from typing import Annotated, Final

from pydantic import AfterValidator, Field

from keyferry.spec.common import (
    VARIABLE_PATTERN,
    Annotations,
    CamelEnum,
    CheckedModel,
    Flag,
    Issuer,
    Key,
    Labels,
    Members,
    Mistake,
    Name,
    Union,
    rule_error,
)
from keyferry.spec.frozen import EMPTY, FrozenMap
from keyferry.spec.template import TemplateError, parse_template

_LONGEST_TEMPLATE: Final = 65536


class TargetType(CamelEnum):
    """Whether a Secret is published."""

    SECRET = "Secret"  # noqa: S105 - a choice, not a secret
    NONE = "None"


class FileFormat(CamelEnum):
    """How a file is written."""

    TOKEN = "Token"  # noqa: S105 - a choice, not a secret
    JSON = "Json"
    ENV = "Env"
    TEMPLATE = "Template"
    TILED = "Tiled"
    AIOD = "AIoD"
    LABARCHIVES = "LabArchives"


FIXED_NAMES: Final[Mapping[FileFormat, tuple[str, ...]]] = {
    FileFormat.TILED: ("TILED_API_KEY", "tiled.env"),
    FileFormat.AIOD: ("config.toml", "token.toml"),
    FileFormat.LABARCHIVES: ("labarchives.env",),
}
"""What the formats without a name of their own write (the contract's table)."""
DIRECTORIES: Final = frozenset({".tiled", ".aiod"})
OWN_PREFIX: Final = ".keyferry"


def _check_template(text: str) -> str:
    try:
        parse_template(text)
    except TemplateError as error:
        raise rule_error(error.message) from None
    return text


def _check_file_name(name: str) -> str:
    if name.lower().startswith(OWN_PREFIX) or name in DIRECTORIES:
        raise rule_error("is a name that Keyferry keeps for itself (.keyferry…, .tiled, .aiod)")
    return name


TemplateText = Annotated[str, Field(max_length=_LONGEST_TEMPLATE), AfterValidator(_check_template)]
FileName = Annotated[Key, AfterValidator(_check_file_name)]
VariableName = Annotated[str, Field(pattern=VARIABLE_PATTERN, max_length=253)]


class TargetFile(CheckedModel):
    """One published file, which is also one key of the Secret."""

    format: FileFormat = Field(description="What is written.")
    name: FileName | None = Field(
        default=None, description="File name and Secret key, for Token, Json, Env and Template."
    )
    variables: Annotated[
        Mapping[VariableName, TemplateText], Field(min_length=0, max_length=64), AfterValidator(FrozenMap)
    ] = Field(default=EMPTY, description="Environment variables and their values, which may hold ${…} names, for Env.")
    template: TemplateText | None = Field(
        default=None, description="Content of the file, which may hold ${…} names, for Template."
    )
    api_server: Issuer | None = Field(default=None, description="Base URL of the AIoD API, for AIoD.")

    def mistakes(self) -> Iterator[Mistake]:
        """Each format has its own fields."""
        yield from self.members(FILE_RULES)

    @property
    def names(self) -> tuple[str, ...]:
        """The names that the format claims among all files and keys of the identity."""
        return (self.name,) if self.name is not None else FIXED_NAMES.get(self.format, ())


FILE_RULES: Final = Union(
    "format",
    {
        FileFormat.TOKEN: Members(needs=("name",)),
        FileFormat.JSON: Members(needs=("name",)),
        FileFormat.ENV: Members(needs=("name", "variables")),
        FileFormat.TEMPLATE: Members(needs=("name", "template")),
        FileFormat.TILED: Members(),
        FileFormat.AIOD: Members(takes=("api_server",)),
        FileFormat.LABARCHIVES: Members(),
    },
)
DEFAULT_FILES: Final = (
    TargetFile(format=FileFormat.TOKEN, name="token"),
    TargetFile(format=FileFormat.JSON, name="token.json"),
)


class Target(CheckedModel):
    """Where the token is published."""

    type: TargetType = Field(
        default=TargetType.SECRET,
        description="Secret publishes a Secret in the identity's namespace; None publishes nothing there, so that "
        "sidecars alone get the token.",
    )
    secret_name: Name | None = Field(default=None, description="Name of the Secret. Unset: the identity's name.")
    labels: Labels = Field(default=EMPTY, description="Labels of the Secret, as far as the installation allows them.")
    annotations: Annotations = Field(
        default=EMPTY, description="Annotations of the Secret, as far as the installation allows them."
    )
    files: tuple[TargetFile, ...] = Field(
        default=DEFAULT_FILES, min_length=1, max_length=32, description="Files, which are the keys of the Secret."
    )
    touch_pods: Flag = Field(
        default=False,
        description="Annotate the pods that mount the Secret after each renewal, so that the kubelet syncs at once.",
    )

    def mistakes(self) -> Iterator[Mistake]:
        """Names must be unique over all formats; a target without a Secret has no fields of one."""
        owners: dict[str, int] = {}
        for index, file in enumerate(self.files):
            for name in file.names:
                first = owners.setdefault(name, index)
                if first != index:
                    field = ("files", index, "format" if file.name is None else "name")
                    yield Mistake(field, f"writes the same name as files[{first}]; each file needs a name of its own")
                    break
        if self.type is TargetType.NONE:
            for name in ("secret_name", "labels", "annotations", "touch_pods"):
                if self.is_set(name):
                    yield Mistake((self.alias_of(name),), "does not belong to type: None, which publishes no Secret")
        for name in ("labels", "annotations"):
            for key in getattr(self, name):
                if key.split("/", 1)[0].endswith("keyferry.dev") and "/" in key:
                    yield Mistake((name, key), "begins with keyferry.dev/, which Keyferry keeps for itself")
