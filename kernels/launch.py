"""How the kernels are launched: a pure function of shapes, dtype and device, never of a measurement at run time."""

from typing import Any, NamedTuple


class AttendConfig(NamedTuple):
    """The launch of a pass over the inputs: `splits` programs an image, each of `blocks` blocks of `block_n` inputs."""

    block_n: int
    block_d: int
    block_h: int
    block_k: int
    blocks: int
    splits: int
    num_warps: int
    num_stages: int

    def blocking(self) -> dict[str, Any]:
        """The keyword arguments of the kernels of attend.py and of their launch."""
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_D": self.block_d,
            "BLOCK_H": self.block_h,
            "BLOCK_K": self.block_k,
            "num_warps": self.num_warps,
            "num_stages": self.num_stages,
            "enable_fp_fusion": True,  # Triton 3.10 turns it off by default
        }


def attend_config(B: int, N: int, D_in: int, K: int, heads: int, itemsize: int, multiprocessors: int) -> AttendConfig:
    """The launch for B images of N inputs of D_in elements of `itemsize` bytes, K slots and `heads` heads."""
    block_d = max(16, next_power_of_2(D_in))
    block_h = next_power_of_2(heads)
    block_k = max(next_power_of_2(K), 8 // block_h)  # tensor cores take 8 columns or more
    block_n = max(16, min(128, 16384 // (block_d * itemsize)))
    tiles = -(-N // block_n)
    # About four programs for each multiprocessor, so that the last wave costs little.
    splits = max(1, min(tiles, 4 * multiprocessors // max(B, 1)))
    blocks = -(-tiles // splits)
    return AttendConfig(block_n, block_d, block_h, block_k, blocks, -(-tiles // blocks), num_warps=4, num_stages=3)


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()
