"""Where answers come from: an engine in this process, or an OpenAI-compatible endpoint."""

from leyden.evaluate.sources.endpoint import EndpointSettings, EndpointSource
from leyden.evaluate.sources.engine import EngineSource
from leyden.evaluate.sources.source import Source

__all__ = ["EndpointSettings", "EndpointSource", "EngineSource", "Source"]
