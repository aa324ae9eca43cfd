"""The readable table of what `python -m benchmarks.aot` measured."""

LOOPS = ("discovery", "set prediction")
HEAD = """Made by `python -m benchmarks.aot` from aot.csv beside it: {versions}. No GPU ran anything; the times are
what the main loop's instructions (all of them, where there is no loop) take to issue on 132 multiprocessors at 1.755
GHz, and what the inputs (the decoder's maps and the images), and the gradient where it is written, take to move at 4.3
TB/s.

## Main loops on sm_90, bf16
"""
LOOP_COLUMNS = ("registers", "stack_bytes", "shared_bytes", "programs_per_sm", "loop_instructions")
LOOP_COLUMNS += ("issue_us", "memory_us", "issue_over_memory", "loop_kinds")
COLUMNS = ("block", "registers", "stack_bytes", "shared_bytes", "programs_per_sm", "wgmma", "mma", "mfma", "async16")
COLUMNS += ("loop_instructions", "issue_over_memory")
ABSENT = """
Asynchronous copies of 16 bytes (async16) are absent on sm_80: Triton does not pipeline there a load that goes into
one dot as it is and into another transposed.
"""


def table(results: list[dict[str, str]], violations: list[dict[str, str]]) -> str:
    """Markdown; of every result also the assertions that it violates, a sentence by its column."""
    versions = list(dict.fromkeys(result["triton"] for result in results))
    text = HEAD.format(versions=", ".join(f"Triton {version}" for version in versions))
    loops = [
        r for r in results if r["case"] in LOOPS and r["dtype"] == "bf16" and r["target"] == "sm_90" and r["issue_us"]
    ]
    order = list(dict.fromkeys((r["case"], r["kernel"]) for r in loops))
    loops.sort(key=lambda r: order.index((r["case"], r["kernel"])))
    text += _markdown(loops, ("case", "kernel", "triton", *LOOP_COLUMNS))
    text += "\n## Assertions that do not hold\n\n"
    text += "".join(
        f"- Triton {result['triton']}, {result['case']}, {result['kernel']}, {result['dtype']}, {result['target']}: "
        f"{'; '.join(found.values())}\n"
        for result, found in zip(results, violations, strict=True)
        if found
    )
    text += ABSENT if any(violations) else f"None.\n{ABSENT}"
    for version in versions:
        text += f"\n## Every row, Triton {version}\n"
        text += _markdown(
            [r for r in results if r["triton"] == version], ("case", "kernel", "dtype", "target", *COLUMNS)
        )
    return text


def _markdown(results: list[dict[str, str]], columns: tuple[str, ...]) -> str:
    lines = [f"| {' | '.join(column.replace('_', ' ') for column in columns)} |", "|---" * len(columns) + "|"]
    lines += [f"| {' | '.join(result[column] or '-' for column in columns)} |" for result in results]
    return "\n" + "\n".join(lines) + "\n"
