"""Which namespaces a ClusterTokenProvider is offered to: a label selector, as all of Kubernetes writes it."""

from collections.abc import Iterator, Mapping
from typing import Final

from pydantic import Field

from keyferry.spec.common import (
    CamelEnum,
    CheckedModel,
    LabelKey,
    Labels,
    LabelValue,
    Members,
    Mistake,
    Model,
    Union,
)
from keyferry.spec.frozen import EMPTY


class SelectorOperator(CamelEnum):
    """How a label is compared."""

    IN = "In"
    NOT_IN = "NotIn"
    EXISTS = "Exists"
    DOES_NOT_EXIST = "DoesNotExist"


SELECTOR_RULES: Final = Union(
    "operator",
    {
        SelectorOperator.IN: Members(needs=("values",)),
        SelectorOperator.NOT_IN: Members(needs=("values",)),
        SelectorOperator.EXISTS: Members(),
        SelectorOperator.DOES_NOT_EXIST: Members(),
    },
)


class SelectorExpression(CheckedModel):
    """One demand on a namespace's labels."""

    key: LabelKey = Field(description="The label's key.")
    operator: SelectorOperator = Field(
        description="In and NotIn compare the label's value with values; a namespace without the label is NotIn."
    )
    values: tuple[LabelValue, ...] = Field(default=(), max_length=64, description="Values, for In and NotIn.")

    def mistakes(self) -> Iterator[Mistake]:
        """In and NotIn need values, which the others do not have."""
        yield from self.members(SELECTOR_RULES)

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a namespace with these labels meets the demand."""
        match self.operator:
            case SelectorOperator.IN:
                return labels.get(self.key) in self.values
            case SelectorOperator.NOT_IN:
                return labels.get(self.key) not in self.values
            case SelectorOperator.EXISTS:
                return self.key in labels
            case SelectorOperator.DOES_NOT_EXIST:
                return self.key not in labels

    def __str__(self) -> str:
        """Write it as ``kubectl`` does."""
        match self.operator:
            case SelectorOperator.EXISTS:
                return self.key
            case SelectorOperator.DOES_NOT_EXIST:
                return f"!{self.key}"
            case _:
                return f"{self.key} {self.operator.lower()} ({','.join(self.values)})"


class NamespaceSelector(Model):
    """Namespaces by their labels; an empty selector selects every namespace."""

    match_labels: Labels = Field(default=EMPTY, description="Labels that a namespace must all have.")
    match_expressions: tuple[SelectorExpression, ...] = Field(
        default=(), max_length=32, description="Further demands on its labels, all of which must be met."
    )

    @property
    def selects_all(self) -> bool:
        """Tell whether it selects every namespace, whatever its labels."""
        return not self.match_labels and not self.match_expressions

    def matches(self, labels: Mapping[str, str]) -> bool:
        """Tell whether a namespace with these labels is selected."""
        return all(labels.get(key) == value for key, value in self.match_labels.items()) and all(
            expression.matches(labels) for expression in self.match_expressions
        )

    def __str__(self) -> str:
        """Write it as ``kubectl`` does."""
        wanted = [f"{key}={value}" for key, value in self.match_labels.items()]
        return ",".join([*wanted, *(str(expression) for expression in self.match_expressions)])
