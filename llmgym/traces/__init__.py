"""Request traces: readers of public formats, and scenarios fitted to them."""

from llmgym.scenario.replay_files import register_reader
from llmgym.traces.readers import read_trace

register_reader(read_trace)
