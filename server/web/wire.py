"""Request bodies for Litestar's handlers, decoded by msgspec straight into their struct.

`body(Model)` is the `dto` of a handler whose `data` is a Model. Whatever is
wrong with a body is a 400 that says where.
"""

from __future__ import annotations

from collections.abc import Generator
from typing import Any, ClassVar

import msgspec
from litestar.dto import AbstractDTO, DTOConfig
from litestar.dto.data_structures import DTOFieldDefinition
from litestar.openapi.spec import Reference, Schema
from litestar.typing import FieldDefinition

from server.errors import RefusedError

UNDECODABLE = (msgspec.MsgspecError, ValueError, RecursionError)


def malformed(error: Exception) -> RefusedError:
    """What is said of a body that doesn't decode."""
    told = "nested too deeply" if isinstance(error, RecursionError) else str(error)
    return RefusedError(f"the body: {told[:500]}", status=400, code="invalid")


class _Body(AbstractDTO[Any]):
    """Decodes; describes itself as its model."""

    config = DTOConfig()
    decoder: ClassVar[msgspec.json.Decoder[Any]]

    def decode_bytes(self, value: bytes) -> Any:
        """The struct. Raises RefusedError 400."""
        try:
            return self.decoder.decode(value)
        except UNDECODABLE as error:
            raise malformed(error) from error

    @classmethod
    def create_for_field_definition(cls, *_given: Any, **_more: Any) -> None:
        """Nothing to prepare."""

    @classmethod
    def create_openapi_schema(
        cls, field_definition: FieldDefinition, handler_id: str, schema_creator: Any
    ) -> Reference | Schema:
        """That of the model."""
        del handler_id
        found: Reference | Schema = schema_creator.for_field_definition(field_definition)
        return found

    @classmethod
    def generate_field_definitions(
        cls, model_type: type[Any]
    ) -> Generator[DTOFieldDefinition, None, None]:
        """None: the struct is taken whole."""
        del model_type
        yield from ()

    @classmethod
    def detect_nested_field(cls, field_definition: FieldDefinition) -> bool:
        """Nothing is looked into."""
        del field_definition
        return False


def body(model: Any) -> type[AbstractDTO[Any]]:
    """The dto that decodes a request's body into `model`."""
    return type(f"{model.__name__}Body", (_Body,), {"decoder": msgspec.json.Decoder(model)})
