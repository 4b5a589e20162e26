"""Apache Beam as the engine: one pipeline a stage, on this machine or wherever a runner of Beam's does the work.

    pip install -e .[curate]        in an environment of its own: Beam keeps protobuf below what newer tools of jax want

The items are spread, each is done by one call, and what came out is in files; so a pipeline is all that Beam sees, whatever
the stage. The only module that imports apache_beam.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import apache_beam as beam
from apache_beam.options.pipeline_options import PipelineOptions


class BeamEngine:
    """See `engine.Engine`. A runner tries items again by its own rules, and a pipeline that fails ends the run."""

    def __init__(self, options: str):
        """`options`: as of a Beam program's command line, for example "--runner=DirectRunner"."""
        self._options = shlex.split(options)

    def run(self, function: Callable[[Any], None], items: Sequence[Any]) -> Iterator[tuple[int, str]]:
        """See `Engine`; the items are told as done once all of them are."""
        with beam.Pipeline(options=PipelineOptions(self._options, save_main_session=False)) as pipeline:
            _ = pipeline | beam.Create(list(items)) | beam.Reshuffle() | beam.Map(function)
        for index in range(len(items)):
            yield index, ""

    def close(self) -> None:
        """Nothing is left running."""
