"""Models of object discovery that train in a moment: the smallest that has a stride in every part, and options of the
command line that make one of a preset.
"""

from slotattn_fast.models.discovery_config import DiscoveryConfig

TINY = DiscoveryConfig(
    image_size=11,
    encoder_channels=8,
    encoder_strides=(2, 1),
    num_slots=3,
    slot_dim=8,
    hidden_dim=8,
    decoder_channels=8,
    decoder_strides=(1, 2),
    output_stride=2,
    broadcast_size=3,
)
SIZES = ["--encoder-channels", "4", "--slot-dim", "8", "--hidden-dim", "8", "--decoder-channels", "4"]
