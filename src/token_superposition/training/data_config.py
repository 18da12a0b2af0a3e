"""The `data` section of a run's configuration: the training and validation data."""

from __future__ import annotations

import re
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator
from pydantic_core import PydanticCustomError

from token_superposition.training.config_types import FolderPath, Positive, Section


class SourceConfig(Section):
    """One source of a mixture."""

    path: FolderPath = Field(description="dataset folder that `tst prepare` wrote")
    weight: Positive = Field(1.0, description="share of the rows, relative to the weights of the other sources")


class DataConfig(Section):
    """The training and validation data."""

    sources: dict[str, SourceConfig] = Field(
        default_factory=dict,
        description="a mixture of datasets in place of `path`: for each source a name, its path and its weight",
    )
    path: FolderPath | None = Field(None, description="dataset folder that `tst prepare` wrote", validate_default=True)
    bag_boundary: Literal["stream", "document"] = Field(
        "stream",
        description="stream: bags ignore document ends, as in the paper; document: no bag and no target "
        "crosses the end of a document",
    )
    attention_boundary: Literal["row", "document"] = Field(
        "row",
        description="row: a position attends to the whole row before it; document: to its own document only "
        "(needs bag_boundary document)",
    )
    verify: bool = Field(True, description="read all data and compare its checksums when a run starts")
    validation_sets: dict[str, FolderPath] = Field(
        default_factory=dict,
        description="additional validation sets: for each a name and the dataset folder whose validation split is used",
    )

    @field_validator("sources")
    @classmethod
    def _weights(cls, sources: dict[str, SourceConfig]) -> dict[str, SourceConfig]:
        for name in sources:
            if not re.fullmatch(r"[\w+-][\w+ -]{0,99}", name):
                raise ValueError(f"the name of a source has at most 100 letters, digits and + - _, not {name[:100]!r}")
        return dict(sorted(sources.items()))  # the order in the file must not change the run

    @field_validator("path")
    @classmethod
    def _one_kind(cls, path: str | None, info: ValidationInfo) -> str | None:
        if "sources" in info.data and (path is None) != bool(info.data["sources"]):
            if path is None:
                raise PydanticCustomError("missing", "is missing")
            raise ValueError("give either path or sources, not both")
        return path

    @model_validator(mode="after")
    def _fits(self) -> DataConfig:
        if self.attention_boundary == "document" and self.bag_boundary != "document":
            raise ValueError(
                "attention_boundary: document needs bag_boundary: document; otherwise a bag can span two documents"
            )
        twice = sorted(self.sources.keys() & self.validation_sets.keys())
        if twice:
            raise ValueError(f"validation_sets.{twice[0]}: a source has this name, and is always validated")
        return self

    @property
    def mixture(self) -> dict[str, SourceConfig]:
        """The sources by name; a single folder is one source with an empty name."""
        if self.path is None:
            return self.sources
        return {"": SourceConfig(path=self.path, weight=1.0)}

    @property
    def folders(self) -> list[str]:
        """All dataset folders that the run reads, without duplicates."""
        paths = [source.path for source in self.mixture.values()]
        return list(dict.fromkeys([*paths, *self.validation_sets.values()]))
