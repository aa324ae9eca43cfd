# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disable-error-code=assignment
"""Linear assignment in Triton: in each of B problems, R rows get a column each of C >= R, at the least sum of costs.

Shortest augmenting paths (Jonker and Volgenant, 1987, in the order of Crouse, 2016, as SciPy has it): rows are assigned
one after the other, and duals u_r of the rows and v_c of the columns are kept with

    cost_rc - u_r - v_c >= 0,   and = 0 where row r has column c

A new row is the root of a tree, which Dijkstra's algorithm grows over these reduced costs:

    length_c  = least + cost_rc - u_r - v_c where that is shorter     by the row r that joined last; via_c = r
    least     = min of length_c over the columns outside the tree     its column joins, and so does the row that has it
    ...                                                               until the column is free: no row has it
    u_r      += least - entered_r in the tree                         entered_r: `least` when row r joined
    v_c      -= least - length_c in the tree
    column c goes to row via_c, the column that this row had to its via, and so on back to the root

O(R^2 C) a problem. All sums are in float64, which holds every cost exactly. A program is a warp with a problem, and a
vector over the columns or over the rows is a block.
"""

import triton
import triton.language as tl


@triton.jit
def at(b_x, i):
    """Element i of a block."""
    return tl.sum(tl.where(tl.arange(0, b_x.shape[0]) == i, b_x, 0), 0)


@triton.jit
def all_finite(p_c, stride_r, R, m_c):
    """1 where all costs of a problem are finite, else 0; `p_c`, `m_c`: its first row, and the columns that exist."""
    finite = 1
    for first in tl.static_range(0, m_c.shape[0], 32):  # so many rows at once, as more do not fit in registers
        o_r = first + tl.arange(0, 32)
        p_rc = p_c[None, :] + o_r.to(tl.int64)[:, None] * stride_r
        b_cost = tl.load(p_rc, mask=(o_r < R)[:, None] & m_c[None, :], other=0.0).to(tl.float64)
        b_finite = (tl.abs(b_cost) < float("inf")).to(tl.int32)
        finite = tl.minimum(finite, tl.min(tl.min(b_finite, 1), 0))
    return finite


@triton.jit
def match_kernel(
    cost,  # [B, R, C]
    columns,  # [B, R] out, int64: of each row
    stride_b,
    stride_r,
    stride_c,
    R,
    C,
    BLOCK: tl.constexpr,  # at least C
):
    i_b = tl.program_id(0).to(tl.int64)
    o = tl.arange(0, BLOCK)  # columns, and rows
    cost += i_b * stride_b
    p_c = cost + o.to(tl.int64) * stride_c
    # Where not all are finite, all count as 0, which gives row r column r.
    m_c = o < C * all_finite(p_c, stride_r, R, o < C)

    b_u, b_v = tl.zeros([BLOCK], tl.float64), tl.zeros([BLOCK], tl.float64)
    b_row_of, b_column_of = tl.full([BLOCK], -1, tl.int32), tl.full([BLOCK], -1, tl.int32)  # -1: free
    for root in range(R):
        b_length = tl.full([BLOCK], float("inf"), tl.float64)
        b_entered = tl.full([BLOCK], float("inf"), tl.float64)
        b_via = tl.zeros([BLOCK], tl.int32) + root
        m_out = o < C  # outside the tree
        least = tl.cast(0.0, tl.float64)
        r, c = root, 0
        # Ends whatever the numbers are: every step takes another column, and one of the C is free.
        while r >= 0:
            b_entered = tl.where(o == r, least, b_entered)
            b_cost = tl.load(p_c + r * tl.cast(stride_r, tl.int64), mask=m_c, other=0.0).to(tl.float64)
            b_new = least + b_cost - at(b_u, r) - b_v
            m_shorter = (b_new < b_length) & m_out
            b_length = tl.where(m_shorter, b_new, b_length)
            b_via = tl.where(m_shorter, r, b_via)
            least = tl.min(tl.where(m_out, b_length, float("inf")), 0)
            # Of columns equally near a free one, which ends the search, and of those the first.
            b_order = tl.where(b_row_of < 0, o, o + BLOCK)
            c = tl.min(tl.where((b_length <= least) & m_out, b_order, 2 * BLOCK), 0) % BLOCK
            m_out = m_out & (o != c)
            r = at(b_row_of, c)
        b_u = tl.where(b_entered < float("inf"), b_u + (least - b_entered), b_u)
        b_v = tl.where(m_out, b_v, b_v - (least - b_length))  # infinite beyond C, where it is not used
        while c >= 0:  # the root had no column
            r = at(b_via, c)
            b_row_of = tl.where(o == c, r, b_row_of)
            before = at(b_column_of, r)
            b_column_of = tl.where(o == r, c, b_column_of)
            c = before
    tl.store(columns + i_b * R + o, b_column_of.to(tl.int64), mask=o < R)
