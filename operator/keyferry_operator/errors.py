"""What the API server answers when it does not do as asked."""

from __future__ import annotations

from keyferry.errors import StoreUnavailable


class ApiError(StoreUnavailable):
    """The API server refused, or could not be reached. Its text never holds the content of an object."""

    def __init__(
        self, message: str, *, status: int = 0, cause: str = "", retry_after: float | None = None, lacks: str = ""
    ) -> None:
        super().__init__(message)
        self.status = status
        """HTTP status; 0 where no answer came."""
        self.cause = cause
        """The ``reason`` of the Status object, such as ``NotFound``."""
        self.retry_after = retry_after
        self.lacks = lacks
        """The verb that the service account may not use, where the API server names one."""

    @property
    def not_found(self) -> bool:
        """Tell whether the object is not there."""
        return self.status == 404  # noqa: PLR2004 - RFC 9110

    @property
    def conflict(self) -> bool:
        """Tell whether somebody else wrote first, or the object is there already."""
        return self.status == 409  # noqa: PLR2004

    @property
    def forbidden(self) -> bool:
        """Tell whether the operator lacks the right."""
        return self.status == 403  # noqa: PLR2004
