"""Checkpoints of the models under test: found, quantized by ModelOpt or taken as they are, checked, and kept.

store         gives checkpoints, each made once         sources            where weights come from
verify        is a checkpoint what its recipe says?     intended           what a recipe means for a network
quantization  what one says of its own quantization     configs            what its JSON files say
entries       what is wrong with one that is kept        digests            what identifies weights
making        the process that does the work            calibration        the text that scales are measured on
                                                        safetensors_files  what stands in weights' files
"""

from pytest_llamaperf.checkpoints.intended import check_can_be_quantized, intended_modules, kept_layers
from pytest_llamaperf.checkpoints.safetensors_files import BadCheckpoint
from pytest_llamaperf.checkpoints.store import Checkpoint, CheckpointStore, CheckpointWarning
from pytest_llamaperf.checkpoints.verify import Findings, check_rope, checked, quantized_modules, scales

__all__ = [
    "BadCheckpoint",
    "Checkpoint",
    "CheckpointStore",
    "CheckpointWarning",
    "Findings",
    "check_can_be_quantized",
    "check_rope",
    "checked",
    "intended_modules",
    "kept_layers",
    "quantized_modules",
    "scales",
]
