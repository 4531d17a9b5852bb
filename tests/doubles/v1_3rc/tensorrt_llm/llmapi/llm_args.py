"""What LLM takes at this version."""

from trtllm_double.arguments import LaterArgs


class TorchLlmArgs(LaterArgs):
    pass
